"""Many runs over processes: what one process would have left, whatever becomes of the others."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
from runner_parts import SMALL, small, trajectory

from clmeta.record.runfolder import RunFolder
from clmeta.runs.config import RunConfig
from clmeta.sweep.jobs import run_jobs
from clmeta.sweep.plan import Chunk, SweepRun
from clmeta.sweep.run import LocalLauncher, SweepResult, do_runs
from clmeta.sweep.work import do_chunk


def do(configs: dict[str, RunConfig], output: Path, processes: int = 1) -> SweepResult:
    """The runs, each by itself, in folders of the names given."""
    runs = [SweepRun(config, output / name) for name, config in configs.items()]
    return do_runs(runs, output, launcher=LocalLauncher(processes), together=False)


def test_processes_give_what_one_process_gives(tmp_path):
    configs = {str(seed): small(seed=seed) for seed in (0, 1, 2)}
    output = tmp_path / "many"
    chunks = [Chunk((SweepRun(c, output / n),), output) for n, c in configs.items()]
    events = []
    ends = run_jobs(chunks, 2, events.append, do_chunk)
    assert [(end.job, end.kind) for end in ends] == [(i, "finished") for i in range(3)]
    assert sorted(e.job for e in events if e.kind == "started") == [0, 1, 2]
    assert sorted(e.run for e in events if e.kind == "run finished") == ["0", "1", "2"]
    assert do(configs, tmp_path / "one").failed == {}
    for name in configs:
        pd.testing.assert_frame_equal(
            trajectory(tmp_path / "many" / name), trajectory(tmp_path / "one" / name)
        )


def test_runs_apart_leave_nothing_beside_their_folders(tmp_path):
    do({"a": SMALL}, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a"]


def test_a_failure_does_not_stop_the_others(tmp_path):
    (tmp_path / "below").write_text("in the way")
    wild = small(meta="none", base="sgd", alpha0=1e18, weight_decay=1.0)
    result = do({"diverges": wild, "below": SMALL, "fine": SMALL}, tmp_path)
    assert list(result.failed) == ["diverges", "below"]
    assert "step" in result.failed["diverges"]
    assert "cannot make" in result.failed["below"]
    assert result.folders == [tmp_path / "fine"]


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


def test_a_killed_process_takes_only_its_own_run_with_it(tmp_path, monkeypatch):
    (tmp_path / "deadly_nets.py").write_text(DIES)
    monkeypatch.chdir(tmp_path)
    deadly = small(model="deadly_nets:Dies", model_options={}, blocks="scalar")
    wild = small(meta="none", base="sgd", alpha0=1e18, weight_decay=1.0)
    configs = {"dies": deadly, "diverges": wild, "a": SMALL, "b": SMALL}
    result = do(configs, tmp_path / "out", processes=2)
    assert sorted(result.failed) == ["dies", "diverges"]
    assert "process died" in result.failed["dies"]
    assert "step" in result.failed["diverges"]


LONG = """
import sys
from pathlib import Path
from clmeta.runs.config import RunConfig
from clmeta.sweep.jobs import run_jobs
from clmeta.sweep.plan import Chunk, SweepRun
from clmeta.sweep.work import do_chunk

if __name__ == "__main__":
    folder, processes = Path(sys.argv[1]), int(sys.argv[2])
    config = RunConfig(stream_options={"tasks": 1, "steps_per_task": 2_000_000})
    jobs = [Chunk((SweepRun(config, folder / name),), folder) for name in ("a", "b")]
    def show(event):
        print(event.kind, flush=True)
    try:
        run_jobs(jobs, processes, show, do_chunk)
    except KeyboardInterrupt:
        sys.exit(130)
"""


def test_an_interrupt_keeps_what_all_processes_recorded(tmp_path):
    (tmp_path / "long.py").write_text(LONG)
    command = [sys.executable, "long.py", str(tmp_path), "2"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("progress") and all((tmp_path / n).exists() for n in ("a", "b")):
                break
        os.kill(process.pid, signal.SIGINT)
        said = process.stdout.read()
        assert process.wait(120) == 130
    assert said.split().count("interrupted") == 2
    assert "finished" not in said.split()
    kept = 0
    for name in ("a", "b"):
        assert not RunFolder(tmp_path / name).finished
        rows = trajectory(tmp_path / name)
        assert rows.get("step", pd.Series()).tolist() == list(range(len(rows)))
        kept += len(rows)
    assert kept > 50
