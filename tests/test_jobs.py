"""Many runs over processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pandas as pd
from runner_parts import SMALL, small, trajectory

from clmeta.record.runfolder import RunFolder
from clmeta.sweep.jobs import Job, run_jobs


def test_processes_give_what_one_process_gives(tmp_path):
    def jobs(where):
        return [Job(small(seed=seed), tmp_path / where / str(seed)) for seed in (0, 1, 2)]

    events = []
    ends = run_jobs(jobs("many"), 2, events.append)
    assert [end.kind for end in ends] == ["finished"] * 3
    assert [end.job for end in ends] == [0, 1, 2]
    assert sorted(e.job for e in events if e.kind == "started") == [0, 1, 2]
    assert [end.kind for end in run_jobs(jobs("one"), 1)] == ["finished"] * 3
    for seed in "012":
        pd.testing.assert_frame_equal(
            trajectory(tmp_path / "many" / seed), trajectory(tmp_path / "one" / seed)
        )


def test_a_failure_does_not_stop_the_others(tmp_path):
    (tmp_path / "file").write_text("in the way")
    jobs = [
        Job(small(meta="none", base="sgd", alpha0=1e30), tmp_path / "diverges"),
        Job(SMALL, tmp_path / "file" / "below"),
        Job(SMALL, tmp_path / "fine"),
    ]
    ends = run_jobs(jobs)
    assert [end.kind for end in ends] == ["failed", "failed", "finished"]
    assert "step" in str(ends[0].error)
    assert "cannot make" in str(ends[1].error)
    assert RunFolder(tmp_path / "fine").finished


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
    diverging = small(meta="none", base="sgd", alpha0=1e30)
    jobs = [
        Job(deadly, tmp_path / "dies"),
        Job(diverging, tmp_path / "diverges"),
        Job(SMALL, tmp_path / "a"),
        Job(SMALL, tmp_path / "b"),
    ]
    ends = run_jobs(jobs, 2)
    assert [end.kind for end in ends] == ["failed", "failed", "finished", "finished"]
    assert "process died" in str(ends[0].error)
    assert "step" in str(ends[1].error)


LONG = """
import sys
from pathlib import Path
from clmeta.runs.config import RunConfig
from clmeta.sweep.jobs import Job, run_jobs

if __name__ == "__main__":
    folder, processes = Path(sys.argv[1]), int(sys.argv[2])
    config = RunConfig(stream_options={"tasks": 1, "steps_per_task": 2_000_000})
    jobs = [Job(config, folder / name) for name in ("a", "b")]
    def show(event):
        print(event.kind, flush=True)
    try:
        run_jobs(jobs, processes, show)
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
        assert process.wait(120) == 130
    kept = 0
    for name in ("a", "b"):
        assert not RunFolder(tmp_path / name).finished
        rows = trajectory(tmp_path / name)
        assert rows.get("step", pd.Series()).tolist() == list(range(len(rows)))
        kept += len(rows)
    assert kept > 50
