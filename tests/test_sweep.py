"""A sweep, however it is stopped and however many share its folder, ends as an undisturbed one."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from clmeta.analysis.load import find_runs
from clmeta.errors import RunFolderError
from clmeta.record import runfolder
from clmeta.record.runfolder import RunFolder
from clmeta.runs.config import RunConfig
from clmeta.sweep import plan as chunks
from clmeta.sweep.run import LocalLauncher, run_sweep
from clmeta.sweep.spec import SweepSpec

SHORT = {"stream_options": {"tasks": 2, "steps_per_task": 60}}
SPEC = SweepSpec(SHORT, {"alpha0": [1e-4, 1e-3], "blocks": ["scalar", "layer"]}, seeds=[0, 1])
#: With a step size of 1e18 this diverges.
WILD = {"base": "sgd", "meta": "none", "weight_decay": 1.0}
#: The same as a command of its own, so that it can be killed.
COMMAND = [
    *("clmeta", "sweep", "--grid", "alpha0=1e-4,1e-3"),
    *("--grid", "blocks=scalar,layer", "--seeds", "0-1", "-s", "tasks=2", "--jobs", "1"),
]


def command(output: Path, steps: int = 60) -> list[str]:
    return [*COMMAND, "-s", f"steps_per_task={steps}", "--chunk", "4", "-o", str(output)]


def trajectories(output: Path) -> dict[str, pd.DataFrame]:
    """Every finished run's whole trajectory, by the run's name."""
    return {
        folder.parent.name: pd.read_parquet(folder.parent / "trajectory")
        for folder in sorted(output.glob("*/summary.json"))
    }


def assert_same(one: Path, other: Path, runs: int = 8) -> None:
    expected, found = trajectories(one), trajectories(other)
    assert len(expected) == runs
    assert list(found) == list(expected)
    for name, frame in expected.items():
        pd.testing.assert_frame_equal(found[name], frame, check_exact=True)


def wait_for_a_run(output: Path) -> None:
    """Until the first run has begun; importing torch is no interesting moment."""
    deadline = time.monotonic() + 60
    while not any(output.glob("*/config.json")):
        assert time.monotonic() < deadline
        time.sleep(0.005)


def here(spec: SweepSpec, output: Path, chunk: int | None = 4):
    return run_sweep(spec.configs(), output, launcher=LocalLauncher(1), chunk=chunk)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("undisturbed")
    assert here(SPEC, output).failed == {}
    return output


def test_every_combination_gets_a_run_folder_named_by_what_it_computes(undisturbed):
    names = sorted(trajectories(undisturbed))
    assert names == sorted(run.name for run in _runs(undisturbed))
    configs = [RunConfig.from_file(undisturbed / name) for name in names]
    assert set(configs) == set(SPEC.configs())
    assert all(name.endswith(c.key()) for name, c in zip(names, configs, strict=True))


def test_folders_are_told_apart_by_the_options_in_which_they_differ(tmp_path):
    few = SweepSpec(SHORT, {"eta": [1e-3, 1e-2], "model_options.hidden": [[8, 8]]}, seeds=[0])
    names = [run.name.rpartition("-")[0] for run in _runs(tmp_path, few)]
    assert names == [
        "adamw-adam-scalar-0.0001-tasks=2-steps_per_task=60-hidden=8+8-seed-0",
        "adamw-adam-scalar-0.0001-eta=0.01-tasks=2-steps_per_task=60-hidden=8+8-seed-0",
    ]
    blocks = {"alpha0": {"output": 1e-2, "*": 1e-3}, "blocks": "layer"}
    (named,) = _runs(tmp_path, SweepSpec(blocks))
    assert named.name.startswith("adamw-adam-layer-output=0.01-rest=0.001-seed-0-")
    long = SweepSpec({"model_options": {f"an_option_{i}": "x" * 50 for i in range(9)}})
    assert len(_runs(tmp_path, long)[0].name) < 160


def test_the_name_of_a_run_s_folder_is_no_other_sweep_s(tmp_path):
    """Whatever else is swept, so that larger sweeps find the runs of smaller ones."""
    few = SweepSpec(SHORT, {"eta": [1e-2]})
    many = SweepSpec(SHORT, {"eta": [1e-3, 1e-2], "alpha0": [1e-4, 1e-3], "gamma": [0.9, 0.999]})
    assert {run.name for run in _runs(tmp_path, few)} < {run.name for run in _runs(tmp_path, many)}


def _runs(output: Path, spec: SweepSpec = SPEC) -> list[chunks.SweepRun]:
    return chunks.sweep_runs(output, spec.configs())


def test_started_again_a_finished_sweep_trains_nothing(undisturbed):
    before = {f: f.stat().st_mtime_ns for f in undisturbed.rglob("*.parquet")}
    assert len(here(SPEC, undisturbed).folders) == 8
    assert {f: f.stat().st_mtime_ns for f in undisturbed.rglob("*.parquet")} == before


def test_a_larger_sweep_keeps_the_runs_of_a_smaller_one(tmp_path, monkeypatch):
    few = SweepSpec(SHORT, {"alpha0": [1e-4]}, seeds=[0])
    here(few, tmp_path)
    (first,) = tmp_path.glob("*/summary.json")
    stamp = first.stat().st_mtime_ns
    more = few.changed({}, {"alpha0": [1e-4, 1e-3]}, [0, 1])
    assert len(here(more, tmp_path).folders) == 4
    assert first.stat().st_mtime_ns == stamp


@pytest.mark.parametrize(
    ("kill", "jobs"),
    [(os.killpg, 1), (os.kill, 2)],
    ids=["all of it", "the parent and not its processes"],
)
def test_killed_at_a_random_moment_and_started_again_it_ends_as_undisturbed(
    tmp_path, undisturbed, reader, kill, jobs
):
    killed = reader.start(tmp_path, [*command(tmp_path), "--jobs", str(jobs)])
    wait_for_a_run(tmp_path)
    time.sleep(random.uniform(0, 0.5))
    if killed.going:
        kill(killed.pid, signal.SIGKILL)
    killed.wait()
    assert here(SPEC, tmp_path).failed == {}
    assert_same(undisturbed, tmp_path)


def test_killed_between_the_ends_of_two_runs_of_a_chunk_the_others_round_as_before(
    tmp_path, undisturbed
):
    here(SPEC, tmp_path)
    lost = _runs(tmp_path)[1]
    (lost.folder / "summary.json").unlink()
    kept = _runs(tmp_path)[0].folder / "summary.json"
    stamp = kept.stat().st_mtime_ns
    here(SPEC, tmp_path)
    assert kept.stat().st_mtime_ns == stamp
    assert_same(undisturbed, tmp_path)
    assert len(find_runs(tmp_path)) == 8


def test_two_sweeps_on_one_folder_share_its_runs(tmp_path, undisturbed, reader):
    other = reader.start(tmp_path, command(tmp_path))
    wait_for_a_run(tmp_path)
    assert here(SPEC, tmp_path).failed == {}
    assert other.wait() == 0, other.failure
    assert_same(undisturbed, tmp_path)
    # Had one run been done twice, its first trajectory would have been set aside or refused.
    assert not list(tmp_path.glob("*/trajectory.interrupted-*"))
    assert not list(tmp_path.glob("*/error.json"))
    assert not (tmp_path / ".sweep" / "claims").exists()


def test_a_failing_run_stops_no_other_and_is_reported_at_the_end(tmp_path):
    spec = SweepSpec({**SHORT, **WILD}, {"alpha0": [1e-2, 1e18]}, seeds=[0])
    result = here(spec, tmp_path)
    good, wild = _runs(tmp_path, spec)
    assert good.finished and not wild.finished
    assert list(result.failed) == [wild.name]
    kept = json.loads((wild.folder / "error.json").read_text())
    assert kept["error"] == result.failed[wild.name]
    assert "finite" in kept["error"]


def test_a_failed_run_is_tried_again_by_the_next_start(tmp_path, monkeypatch):
    spec = SweepSpec(SHORT, {"alpha0": [1e-3]}, seeds=[0])

    def broken(*args, **kwargs):
        raise RuntimeError("no luck")

    with monkeypatch.context() as patched:
        patched.setattr("clmeta.runs.runner.run", broken)
        result = here(spec, tmp_path)
    (run,) = _runs(tmp_path, spec)
    assert result.failed == {run.name: "RuntimeError: no luck"}
    assert "broken" in result.traces[run.name]
    kept = json.loads((run.folder / "error.json").read_text())
    (run.folder / "error.json").write_text(json.dumps({**kept, "time": kept["time"] + 3e9}))
    assert here(spec, tmp_path).failed == {}, "whatever the date of its error"
    assert run.finished and not (run.folder / "error.json").exists()
    (run.folder / "error.json").write_text(json.dumps(kept))  # a kill came before it was removed
    assert here(spec, tmp_path).failed == {}
    assert not (run.folder / "error.json").exists()


def test_a_full_disk_loses_nothing_that_was_finished(tmp_path, undisturbed, monkeypatch):
    write, room = runfolder.write_atomically, 30

    def limited(path, content):
        nonlocal room
        room -= 1
        if room < 0:
            reason = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            raise RunFolderError(f"cannot write {path}: {reason.strerror}") from reason
        write(path, content)

    with monkeypatch.context() as patched:
        for module in ("record.runfolder", "record.rows", "sweep.plan"):
            patched.setattr(f"clmeta.{module}.write_atomically", limited)
        result = here(SPEC, tmp_path)
    assert result.failed
    assert all("No space left" in error for error in result.failed.values())
    finished = trajectories(tmp_path)
    assert len(finished) + len(result.failed) == 8
    assert here(SPEC, tmp_path).failed == {}
    assert_same(undisturbed, tmp_path)


@pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0, reason="only root can mount a small disk"
)
def test_a_disk_that_is_really_full_loses_nothing_that_was_finished(tmp_path, undisturbed):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=160k", "tmpfs", str(disk)])
    if mounted.returncode:
        pytest.skip("a tmpfs cannot be mounted here")
    try:
        result = here(SPEC, disk)
        assert result.failed
        kept = trajectories(disk)
        assert len(kept) + len(result.failed) == 8
        subprocess.run(["mount", "-o", "remount,size=16m", str(disk)], check=True)
        assert here(SPEC, disk).failed == {}
        assert_same(undisturbed, disk)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_an_output_that_cannot_be_written_fails_before_training(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RunFolderError, match=r"cannot write .*file.*choose an output folder"):
        here(SPEC, tmp_path / "file" / "sweep")


def test_runs_that_can_train_together_are_spread_over_the_processes(tmp_path):
    runs = _runs(tmp_path)
    planned = chunks.plan(tmp_path, runs, at_a_time=2, measure=False)
    assert [len(chunk.runs) for chunk in planned] == [4, 4]
    again = chunks.plan(tmp_path, runs, at_a_time=8, measure=False)
    assert again == planned, "a chunk once planned stays"


def test_a_network_that_cannot_be_batched_goes_one_by_one(tmp_path):
    spec = SPEC.changed({"base": "torch.optim:SGD"}, {}, None)
    planned = chunks.plan(tmp_path, _runs(tmp_path, spec), at_a_time=2, measure=False)
    assert [len(chunk.runs) for chunk in planned] == [1] * 8


def test_failures_end_the_command_with_an_error(tmp_path, capsys):
    from clmeta.cli.app import main

    words = ["--base", "sgd", "--meta", "none", "--weight-decay", "1"]
    words += ["--grid", "alpha0=1e-2,1e18", "--jobs", "1"]
    with pytest.raises(SystemExit) as caught:
        main(["sweep", *words, "-s", "tasks=1", "-s", "steps_per_task=20", "-o", str(tmp_path)])
    assert caught.value.code == 1
    out, err = capsys.readouterr()
    assert "1 of 2 runs failed: " in err.splitlines()[-1]
    assert "sgd fixed" in out
    assert len(list(tmp_path.glob("*/summary.json"))) == 1
    assert RunFolder(next(tmp_path.glob("*/summary.json")).parent).finished
