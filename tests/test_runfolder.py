"""A run folder keeps what was written, whatever happens to process, disk or folder."""

import json
import os
import signal
import textwrap
import time
from pathlib import Path

import pandas as pd
import pytest

from clmeta.errors import RunFolderError
from clmeta.record.recorder import Recorder
from clmeta.record.runfolder import RunFolder


def record_steps(recorder: Recorder, steps: int, task: int = 0, start: int = 0) -> None:
    for i in range(start, start + steps):
        recorder.record(task, 1.0 / (i + 1), float(i % 2), [1e-3 + i, 2e-3])


def test_a_process_killed_at_any_moment_keeps_all_but_its_last_part(tmp_path, reader) -> None:
    script = textwrap.dedent(
        """
        from clmeta.record.recorder import Recorder
        recorder = Recorder("run", ["a"], config={}, part_steps=50)
        for step in range(10**9):
            recorder.record(0, float(step), 1.0, 0.1)
            if step % 50 == 0:
                print(step, flush=True)
        """
    )
    for moment in range(3):
        folder = tmp_path / str(moment)
        folder.mkdir()
        task = reader.start(folder, ["python", script])
        while len(task.out().splitlines()) < 6:
            assert task.going, task.failure
        time.sleep(0.013 * moment)
        os.kill(task.pid, signal.SIGKILL)
        assert task.wait() == -signal.SIGKILL
        printed = [int(line) for line in task.out().splitlines(True) if line.endswith("\n")]
        announced, run = max([200, *printed]), folder / "run"
        frame = pd.read_parquet(run / "trajectory")
        assert frame["step"].tolist() == list(range(len(frame)))
        assert frame["loss"].tolist() == frame["step"].tolist()
        assert len(frame) >= announced
        assert len(frame) % 50 == 0
        assert not RunFolder(run).finished
        assert RunFolder(run).config == {}


def test_a_full_disk_is_one_clear_error_and_loses_nothing(tmp_path, reader) -> None:
    script = textwrap.dedent(
        """
        import os, resource, signal
        from clmeta.errors import RunFolderError
        from clmeta.record.recorder import Recorder
        recorder = Recorder("run", ["a"], config={}, part_steps=1000)
        for step in range(1000):
            recorder.record(0, float(step), 1.0, 0.1)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, unlimited[1]))
        try:
            for step in range(1000, 2000):
                recorder.record(0, float(step), 1.0, 0.1)
        except RunFolderError as error:
            print(error)
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
        if os.environ["CASE"] == "freed":
            recorder.close()
        """
    )
    for case, kept in (("full", 1000), ("freed", 2000)):
        folder = tmp_path / case
        folder.mkdir()
        task = reader.do(folder, ["python", script], CASE=case)
        said = task.out()
        assert "cannot write" in said and "part-00001.parquet" in said
        assert "free space" in said and len(said.splitlines()) == 1
        frame = pd.read_parquet(folder / "run" / "trajectory")
        assert frame["loss"].tolist() == list(range(kept))
        assert not list((folder / "run" / "trajectory").glob(".*"))


def test_a_folder_that_cannot_be_written_is_refused_before_training(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match=r"cannot make .*file.*choose a folder"):
        Recorder(tmp_path / "file" / "run", ["a"], config={})


def test_a_finished_run_is_refused_unless_told_to_overwrite(tmp_path: Path) -> None:
    with Recorder(tmp_path, ["a", "b"], config={"seed": 0}) as recorder:
        record_steps(recorder, 5)
    with pytest.raises(RunFolderError, match=r"finished run.*overwrite=True"):
        Recorder(tmp_path, ["a", "b"], config={"seed": 1})
    assert RunFolder(tmp_path).config == {"seed": 0}
    with Recorder(tmp_path, ["a", "b"], config={"seed": 1}, overwrite=True) as recorder:
        assert not RunFolder(tmp_path).finished
        record_steps(recorder, 2)
    assert len(pd.read_parquet(tmp_path / "trajectory")) == 2
    assert RunFolder(tmp_path).config == {"seed": 1}


def test_what_an_unfinished_run_left_is_moved_aside(tmp_path: Path) -> None:
    for attempt in range(3):
        recorder = Recorder(tmp_path, ["a", "b"], config={"attempt": attempt}, part_steps=2)
        record_steps(recorder, 4 + 2 * attempt)
        recorder.folder.release()
    assert len(pd.read_parquet(tmp_path / "trajectory")) == 8
    for attempt in range(2):
        aside = tmp_path / f"trajectory.interrupted-{attempt}"
        assert len(pd.read_parquet(aside)) == 4 + 2 * attempt
        assert json.loads((aside / "_config.json").read_text()) == {"attempt": attempt}


def test_two_processes_do_not_write_to_one_folder(tmp_path, reader) -> None:
    other = ["python", "import clmeta; clmeta.Recorder('run', ['a'], config={})"]
    recorder = Recorder(tmp_path / "run", ["a", "b"], config={})
    refused = reader.do(tmp_path, other)
    assert refused.status == 1
    assert "being written by another process" in refused.err()
    with pytest.raises(ValueError), recorder:
        raise ValueError
    assert reader.do(tmp_path, other).status == 0


def test_two_recorders_of_one_process_do_not_write_to_one_folder(tmp_path: Path) -> None:
    first = Recorder(tmp_path, ["a", "b"], config={"run": 1})
    for _ in range(2):  # the refusal does not loosen the first one's hold
        with pytest.raises(RunFolderError, match=r"another recorder of this one"):
            Recorder(tmp_path, ["a", "b"], config={"run": 2})
    record_steps(first, 3)
    first.close()
    assert RunFolder(tmp_path).config == {"run": 1}
    with Recorder(tmp_path, ["a", "b"], config={"run": 2}, overwrite=True) as second:
        record_steps(second, 2)
    assert len(pd.read_parquet(tmp_path / "trajectory")) == 2


def test_a_recorder_that_nobody_refers_to_holds_nothing(tmp_path: Path) -> None:
    lost = [Recorder(tmp_path, ["a"], config={})]
    lost.append(lost)  # only the garbage collector finds it
    del lost
    Recorder(tmp_path, ["a"], config={})


def test_a_run_that_finishes_while_another_starts_is_kept(tmp_path: Path, monkeypatch) -> None:
    first, hold = Recorder(tmp_path, ["a", "b"], config={"run": 1}), RunFolder._hold

    def finish_first(folder: RunFolder) -> None:
        record_steps(first, 5)
        first.close()
        hold(folder)

    monkeypatch.setattr(RunFolder, "_hold", finish_first)
    with pytest.raises(RunFolderError, match=r"finished run.*overwrite=True"):
        Recorder(tmp_path, ["a", "b"], config={"run": 2})
    assert RunFolder(tmp_path).config == {"run": 1}
    assert len(pd.read_parquet(tmp_path / "trajectory")) == 5


def test_a_missing_or_corrupt_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"config.json is missing"):
        _ = RunFolder(tmp_path).config
    (tmp_path / "config.json").write_text('{"seed": ')
    with pytest.raises(RunFolderError, match=r"config.json cannot be read"):
        _ = RunFolder(tmp_path).config
