"""Many runs over processes: what one process would have left, whatever becomes of the others."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pandas as pd
import pytest
from reader_parts import Task
from runner_parts import SMALL, small, trajectory

from clmeta.record.runfolder import RunFolder
from clmeta.runs.config import RunConfig
from clmeta.sweep.plan import SweepRun
from clmeta.sweep.run import LocalLauncher, SweepResult, do_runs


def do(configs: dict[str, RunConfig], output: Path, launcher: LocalLauncher) -> SweepResult:
    """The runs, each by itself, in folders of the names given."""
    runs = [SweepRun(config, output / name) for name, config in configs.items()]
    return do_runs(runs, output, launcher=launcher, together=False)


class Listening(LocalLauncher):
    """Keeps what it is told."""

    def __call__(self, chunks, tell):
        self.events = []

        def both(event):
            self.events.append(event)
            tell(event)

        self.ends = super().__call__(chunks, both)
        return self.ends


DIES = """
import os, signal, torch

class Dies(torch.nn.Linear):
    def __init__(self, input_shape, n_classes):
        super().__init__(64, 10)
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        if self.training and self.calls > 20:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(x.flatten(1))
"""
WILD = small(meta="none", base="sgd", alpha0=1e18, weight_decay=1.0)
FINE = {str(seed): small(seed=seed) for seed in (0, 1, 2)}


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """What became of five runs over two processes, one of which is killed, and all events."""
    folder, launcher = tmp_path_factory.mktemp("many"), Listening(2)
    (folder / "deadly_nets.py").write_text(DIES)
    deadly = small(model="deadly_nets:Dies", model_options={}, blocks="scalar")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        configs = {"dies": deadly, "diverges": WILD, **FINE}
        return do(configs, folder / "out", launcher), launcher


def test_processes_give_what_one_process_gives(many, tmp_path):
    result, launcher = many
    ends = [(end.job, end.kind) for end in launcher.ends]
    assert ends == [(0, "failed"), *((job, "finished") for job in range(1, 5))]
    assert sorted(e.job for e in launcher.events if e.kind == "started") == [0, 1, 2, 3, 4]
    assert sorted(e.run for e in launcher.events if e.kind == "run finished") == ["0", "1", "2"]
    assert do(FINE, tmp_path, LocalLauncher(1)).failed == {}
    for name in FINE:
        pd.testing.assert_frame_equal(trajectory(result.output / name), trajectory(tmp_path / name))


def test_a_killed_process_takes_only_its_own_run_with_it(many):
    result, _ = many
    assert sorted(result.failed) == ["dies", "diverges"]
    assert "process died" in result.failed["dies"]
    assert "step" in result.failed["diverges"]


def test_runs_apart_leave_nothing_beside_their_folders(tmp_path):
    do({"a": SMALL}, tmp_path / "out", LocalLauncher(1))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a"]


def test_a_failure_does_not_stop_the_others(tmp_path):
    (tmp_path / "below").write_text("in the way")
    configs = {"diverges": WILD, "below": SMALL, "fine": SMALL}
    result = do(configs, tmp_path, LocalLauncher(1))
    assert list(result.failed) == ["diverges", "below"]
    assert "step" in result.failed["diverges"]
    assert "cannot make" in result.failed["below"]
    assert result.folders == [tmp_path / "fine"]


LONG = """
import sys
from pathlib import Path
from clmeta.runs.config import RunConfig
from clmeta.sweep.jobs import run_jobs
from clmeta.sweep.plan import Chunk, SweepRun
from clmeta.sweep.work import do_chunk

if __name__ == "__main__":
    folder = Path(".")
    config = RunConfig(stream_options={"tasks": 1, "steps_per_task": 2_000_000})
    jobs = [Chunk((SweepRun(config, folder / name),), folder) for name in ("a", "b")]
    def show(event):
        print(event.kind, event.job, event.done, flush=True)
    try:
        run_jobs(jobs, 2, show, do_chunk)
    except KeyboardInterrupt:
        sys.exit(130)
"""


def told(task: Task) -> dict[str, int]:
    """How many steps each job has told of."""
    lines = [line.split() for line in task.out().splitlines(keepends=True) if line[-1] == "\n"]
    return {"ab"[int(job)]: int(done) for kind, job, done in lines if kind == "progress"}


def test_an_interrupt_keeps_what_all_processes_recorded(tmp_path, reader):
    task = reader.start(tmp_path, ["python", LONG])
    while len(told(task)) < 2:
        time.sleep(0.05)
        assert task.going, task.failure
    os.kill(task.pid, signal.SIGINT)
    assert task.wait() == 130
    said = task.out().split()
    assert said.count("interrupted") == 2
    assert "finished" not in said
    for name, done in told(task).items():
        assert not RunFolder(tmp_path / name).finished
        rows = trajectory(tmp_path / name)
        assert rows["step"].tolist() == list(range(len(rows)))
        assert len(rows) >= done > 0
