"""One run from its config: data, stream, network, optimiser, strategy, run folder."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from clmeta.ground.randomness import forked
from clmeta.ground.seeds import derive_seed
from clmeta.record.checkpoint import Checkpoint
from clmeta.record.recorder import Recorder
from clmeta.record.runfolder import RunFolder
from clmeta.runs.config import RunConfig
from clmeta.runs.going_on import same_run, takes_checkpoints
from clmeta.runs.prepared import prepare
from clmeta.runs.several import run_configs
from clmeta.runs.weights import save_model
from clmeta.strategies.entries import STRATEGIES
from clmeta.strategies.registry import CHECKPOINT

if TYPE_CHECKING:
    from clmeta.strategies.plain import OnlineResult, OnProgress
    from clmeta.streams import ArrayData


@dataclass(frozen=True)
class RunResult:
    """What came out of a run, and the folder that holds all of it."""

    config: RunConfig
    folder: Path
    online: OnlineResult


def run(
    config: RunConfig,
    folder: str | os.PathLike[str],
    *,
    data: ArrayData | None = None,
    overwrite: bool = False,
    on_progress: OnProgress | None = None,
) -> RunResult:
    """Train as the config says and record every step into a run folder.

    An interrupt or error keeps what was recorded and leaves the run unfinished. Where an unfinished
    run of the same options left a checkpoint, that run goes on, bit for bit.

    Args:
        config: the run.
        folder: the run folder; made if missing.
        data: used in place of the config's data set, which then only names it.
        overwrite: replace what a run left there, finished or not.
        on_progress: called about four times a second with a `clmeta.strategies.plain.Progress`.

    Raises:
        BadArgument: before anything is trained or written, for a config that cannot work.
        RunFolderError: for a folder that cannot be written, or holds a finished run or the
            checkpoint of another.
        NonFiniteError: if an update was not finite and ``config.nonfinite`` is ``"raise"``.
    """
    run_configs("config", [config])
    RunFolder(folder).check_free(overwrite)
    with numerics(config.threads):
        prepared = prepare(config, data)
        strategy = STRATEGIES.get(config.strategy)
        content = prepared.contents()
        checkpoint = Checkpoint(folder, every=config.checkpoint_every)
        if not overwrite and checkpoint.step:
            content = same_run(RunFolder(folder), content)
        goes_on = {CHECKPOINT: checkpoint} if takes_checkpoints(strategy) else {}
        names = prepared.optimizer.block_names
        with (
            Recorder(
                folder,
                names,
                config=content,
                overwrite=overwrite,
                resume=checkpoint if goes_on else None,
            ) as recorder,
            forked(),
        ):
            torch.manual_seed(derive_seed(config.seed, "training"))
            online = strategy(
                prepared.model,
                prepared.optimizer,
                prepared.stream,
                recorder=recorder,
                on_progress=on_progress,
                evaluate=config.evaluate,
                **goes_on,
                **config.strategy_options,
            )
            if config.save_model:
                save_model(folder, prepared.model)
            optimizer = prepared.optimizer
            facts = summary(config, online, optimizer.step_sizes(), optimizer.withheld)
            recorder.close({**facts, "method": content["method"]})
    return RunResult(config, recorder.folder.path, online)


def summary(
    config: RunConfig, online: OnlineResult, step_sizes: Mapping[str, float], withheld: int
) -> dict[str, Any]:
    """Run-level numbers beside those that the recorder counts itself."""
    tests = online.test_accuracy
    return {
        "method": config.method,
        "seed": config.seed,
        "mean_test_accuracy": sum(tests) / len(tests) if tests else None,
        "step_sizes": dict(step_sizes),
        "withheld": withheld,
    }


@contextmanager
def numerics(threads: int) -> Iterator[None]:
    """Settings of torch that make a run fast; the caller's come back.

    At batch size one, threads cost more than they bring. Subnormal numbers are flushed to zero:
    momenta of silent units decay into them and stay, and arithmetic on them is so slow that after
    2,000 steps of the paper's network an AdamW step took 3 to 4 times as long.
    """
    before, flushed = torch.get_num_threads(), _flushes()
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        torch.set_flush_denormal(flushed)


def _flushes() -> bool:
    """Whether this thread flushes subnormal numbers to zero."""
    return not bool(torch.tensor([1e-38]) * 0.1)
