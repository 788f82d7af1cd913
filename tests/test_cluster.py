"""A sweep's chunks as tasks: with submitit's local executor, and on a real SLURM if asked for."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from clmeta.errors import BadArgument
from clmeta.sweep.cluster import ClusterLauncher, minutes
from clmeta.sweep.plan import sweep_runs
from clmeta.sweep.run import LocalLauncher, run_sweep
from clmeta.sweep.spec import SweepSpec

SPEC = SweepSpec({"stream_options": {"tasks": 2, "steps_per_task": 40}}, {"alpha0": [1e-3, 1e-2]})
WILD = {"base": "sgd", "meta": "none", "weight_decay": 1.0}
SLURM = Path(__file__).parent / "slurm" / "one_node.sh"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (90, 90),
        ("90", 90),
        ("0:30", 1),
        ("1:30:00", 90),
        ("2-12:00:00", 3600),
        ("2-12:30", 3630),
        ("1-6", 1800),
    ],
)
def test_times_are_slurm_s(text, expected):
    assert minutes(text) == expected


@pytest.mark.parametrize("text", ["soon", "0", "", "1:2:3:4", -5])
def test_other_times_are_refused(text):
    with pytest.raises(BadArgument, match="write minutes"):
        minutes(text)


@pytest.fixture
def submitit():
    return pytest.importorskip("submitit", reason="pip install 'clmeta[slurm]'")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_tasks_do_what_this_process_would_have_done_and_report_failures(submitit, tmp_path):
    spec = SPEC.changed(WILD, {"alpha0": [1e-3, 1e18]}, [0])
    launcher = ClusterLauncher(tmp_path, {"time": "0:10:00"}, cluster="local")
    result = run_sweep(spec.configs(), tmp_path, launcher=launcher)
    good, wild = sweep_runs(tmp_path, spec.configs())
    assert good.finished and list(result.failed) == [wild.name]
    assert "finite" in result.failed[wild.name]
    alone = tmp_path / "alone"
    run_sweep(spec.configs()[:1], alone, launcher=LocalLauncher(1))
    pd.testing.assert_frame_equal(
        pd.read_parquet(alone / good.name / "trajectory"),
        pd.read_parquet(good.folder / "trajectory"),
    )


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_a_task_that_dies_is_reported_with_its_log(submitit, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "doomed.py").write_text(
        "import os, signal\ndef net(shape, n, **options):\n    import torch\n"
        "    if 'SUBMITIT_EXECUTOR' in os.environ: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LazyLinear(n))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    spec = SPEC.changed({"model": "doomed:net"}, {"alpha0": [1e-3]}, [0])
    launcher = ClusterLauncher(tmp_path / "out", cluster="local")
    result = run_sweep(spec.configs(), tmp_path / "out", launcher=launcher)
    (error,) = result.failed.values()
    assert "ended without a result; its log is" in error
    assert Path(error.rpartition(" ")[2]).exists()


def test_options_that_submitit_does_not_know_are_refused(submitit, tmp_path):
    with pytest.raises(BadArgument, match=r"launcher='local': .*use it where sbatch"):
        ClusterLauncher(tmp_path, {"nonsense": 3}, cluster="local")


# On a real SLURM of one node. Slow (a preempted task waits two minutes in the queue) and it starts
# daemons, so it runs only when asked for: CLMETA_SLURM=1 pytest tests/test_cluster.py

asked = pytest.mark.skipif("CLMETA_SLURM" not in os.environ, reason="set CLMETA_SLURM=1 to run it")
there = pytest.mark.skipif(
    shutil.which("slurmctld") is None or os.geteuid() != 0,
    reason="needs root and SLURM: tests/slurm/one_node.sh install",
)


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slurm")
    try:
        subprocess.run([str(SLURM), "start", str(folder)], check=True)
        yield {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
    finally:
        subprocess.run([str(SLURM), "stop", str(folder)], check=True)


def sweep_command(output: Path, steps: int, *words: str) -> list[str]:
    return [
        *(sys.executable, "-m", "clmeta", "sweep", "--launcher", "slurm", "--partition", "low"),
        *("--time", "20", "--grid", "alpha0=1e-3,1e-2", "-o", str(output), *words),
        *("-s", "tasks=2", "-s", f"steps_per_task={steps}"),
    ]


def assert_as_here(output: Path, steps: int, folder: Path) -> None:
    spec = SPEC.changed({"stream_options": {"steps_per_task": steps}}, {}, None)
    run_sweep(spec.configs(), folder, launcher=LocalLauncher(1), chunk=1)
    for run in sweep_runs(folder, spec.configs()):
        pd.testing.assert_frame_equal(
            pd.read_parquet(output / run.name / "trajectory"),
            pd.read_parquet(run.folder / "trajectory"),
        )


@asked
@there
def test_a_sweep_on_slurm(submitit, slurm, tmp_path):
    command = sweep_command(tmp_path / "out", 40, "--chunk", "1")
    done = subprocess.run(command, env=slurm, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert_as_here(tmp_path / "out", 40, tmp_path / "here")


@asked
@there
def test_a_task_that_is_killed_is_reported_with_its_log(submitit, slurm, tmp_path):
    command = sweep_command(tmp_path, 20_000, "--chunk", "2")
    sweep = subprocess.Popen(command, env=slurm, stderr=subprocess.PIPE, text=True)
    wait_for_a_run(tmp_path)
    subprocess.run(["scancel", "--signal=KILL", "--user=root"], env=slurm, check=True)
    error = sweep.communicate(timeout=300)[1]
    assert sweep.returncode == 1
    assert "ended without a result; its log is" in error


@asked
@there
def test_a_preempted_task_is_requeued_and_ends_as_if_nothing_had_happened(
    submitit, slurm, tmp_path
):
    command = sweep_command(tmp_path / "out", 1500, "--chunk", "1")
    sweep = subprocess.Popen(command, env=slurm, stderr=subprocess.PIPE, text=True)
    wait_for_a_run(tmp_path / "out")
    first = subprocess.run(
        ["squeue", "--noheader", "--states=R", "--format=%A"],
        env=slurm, capture_output=True, text=True, check=True,
    ).stdout.split()[0]  # fmt: skip
    subprocess.run(["scancel", "--signal=USR2", first], env=slurm, check=True)
    error = sweep.communicate(timeout=500)[1]
    assert sweep.returncode == 0, error
    assert list((tmp_path / "out").glob("*/trajectory.interrupted-*"))
    assert_as_here(tmp_path / "out", 1500, tmp_path / "here")


def wait_for_a_run(output: Path) -> None:
    deadline = time.monotonic() + 120
    while not any(output.glob("*/trajectory")):
        assert time.monotonic() < deadline
        time.sleep(0.2)
