"""What starts that were killed have left beside what they finished."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from clmeta.errors import RunFolderError
from clmeta.record.runfolder import RunFolder
from clmeta.sweep.claims import Claims
from clmeta.sweep.plan import ERROR, PRIVATE, SweepRun


def remove_leftovers(output: Path, runs: Iterable[SweepRun]) -> None:
    """Remove what finished runs left: errors and checkpoints; and claims of the dead."""
    from clmeta.replicas.going_on import remove_spent

    for run in runs:
        if run.finished:
            with suppress(OSError, RunFolderError):
                (run.folder / ERROR).unlink(missing_ok=True)
                shutil.rmtree(RunFolder(run.folder).checkpoints, ignore_errors=True)
    remove_spent(output)
    folder = output / PRIVATE / "claims"
    if folder.is_dir():
        with suppress(OSError):
            claims = Claims(folder)
            claims.remove_dead()
            claims.remove_if_empty()
    with suppress(OSError):  # a kill may have come between the folder and the one that it was in
        (output / PRIVATE).rmdir()
