"""A run folder keeps what was written, whatever happens to process, disk or folder."""

import json
import signal
import subprocess
import sys
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


def test_a_process_killed_at_any_moment_keeps_all_but_its_last_part(tmp_path: Path) -> None:
    script = textwrap.dedent(
        """
        import sys
        from clmeta.record.recorder import Recorder
        recorder = Recorder(sys.argv[1], ["a"], config={}, part_steps=50)
        for step in range(10**9):
            recorder.record(0, float(step), 1.0, 0.1)
            if step % 50 == 0:
                print(step, flush=True)
        """
    )
    for moment in range(3):
        folder = tmp_path / str(moment)
        command = [sys.executable, "-c", script, str(folder)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if int(line) >= 200:
                    break
            time.sleep(0.013 * moment)
            process.send_signal(signal.SIGKILL)
            printed = [int(line) for line in process.stdout if line.endswith("\n")]
        announced = max([200, *printed])
        frame = pd.read_parquet(folder / "trajectory")
        assert frame["step"].tolist() == list(range(len(frame)))
        assert frame["loss"].tolist() == frame["step"].tolist()
        assert len(frame) >= announced
        assert len(frame) % 50 == 0
        assert not RunFolder(folder).finished
        assert RunFolder(folder).config == {}


def test_a_full_disk_is_one_clear_error_and_loses_nothing(tmp_path: Path) -> None:
    script = textwrap.dedent(
        """
        import resource, signal, sys
        from clmeta.errors import RunFolderError
        from clmeta.record.recorder import Recorder
        recorder = Recorder(sys.argv[1], ["a"], config={}, part_steps=1000)
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
        if sys.argv[2] == "freed":
            recorder.close()
        """
    )
    for case, kept in (("full", 1000), ("freed", 2000)):
        command = [sys.executable, "-c", script, str(tmp_path / case), case]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert "cannot write" in done.stdout and "part-00001.parquet" in done.stdout
        assert "free space" in done.stdout and len(done.stdout.splitlines()) == 1
        frame = pd.read_parquet(tmp_path / case / "trajectory")
        assert frame["loss"].tolist() == list(range(kept))
        assert not list((tmp_path / case / "trajectory").glob(".*"))


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


def test_two_processes_do_not_write_to_one_folder(tmp_path: Path) -> None:
    script = "import sys, clmeta; clmeta.Recorder(sys.argv[1], ['a'], config={})"
    command = [sys.executable, "-c", script, str(tmp_path)]
    recorder = Recorder(tmp_path, ["a", "b"], config={})
    refused = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "being written by another process" in refused.stderr
    with pytest.raises(ValueError), recorder:
        raise ValueError
    subprocess.run(command, check=True)


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
