"""SIGTERM and SIGHUP: loops end between two steps, and what was recorded is kept."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pandas as pd
import pytest

from clmeta.ground.signals import Terminated, stop, stop_requested, stopping
from clmeta.record.recorder import Recorder

both = pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP])


def test_without_a_request_there_is_none():
    assert stop_requested() is None
    with stopping():
        assert stop_requested() is None


@both
def test_a_loop_that_asks_ends_between_two_steps(signum):
    done = []
    with pytest.raises(Terminated) as caught, stopping():
        for step in range(10):
            if stop_requested() is not None:
                done.append("saved")
                stop()
            done.append(step)
            if step == 3:
                os.kill(os.getpid(), signum)
    assert done == [0, 1, 2, 3, "saved"]
    assert caught.value.signum == signum


@both
def test_where_nobody_ever_asked_it_ends_at_once_and_the_record_is_kept(tmp_path: Path, signum):
    with pytest.raises(Terminated), stopping(), Recorder(tmp_path, ["all"]) as recorder:
        for step in range(100):
            recorder.record(0, step, 1.0, 0.1)
            if step == 41:
                os.kill(os.getpid(), signum)
    assert len(pd.read_parquet(tmp_path / "trajectory")) == 42


@both
def test_where_nobody_asks_again_it_ends_after_the_grace(signum):
    started = time.monotonic()
    with pytest.raises(Terminated), stopping(grace=0.2):
        stop_requested()
        os.kill(os.getpid(), signum)
        for _ in range(1000):
            time.sleep(0.01)
    assert 0.15 < time.monotonic() - started < 5


def test_a_later_signal_ends_it_at_once_and_one_that_came_along_does_not():
    with pytest.raises(Terminated), stopping():
        stop_requested()
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGHUP)
        assert stop_requested() == signal.SIGTERM
        time.sleep(1.1)
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("went on")


def test_nothing_disturbs_what_is_written_on_the_way_out():
    written = False
    with pytest.raises(Terminated), stopping():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGHUP)
            written = True
    assert written


def test_handlers_come_back_and_those_of_others_stay():
    got = []
    before = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGHUP)]
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: got.append("theirs"))
    try:
        with stopping(), stopping():
            os.kill(os.getpid(), signal.SIGHUP)
            os.kill(os.getpid(), signal.SIGTERM)
        assert got == ["theirs"]
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        with pytest.raises(Terminated), stopping():
            with stopping():
                pass
            os.kill(os.getpid(), signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        for number, handler in zip((signal.SIGTERM, signal.SIGHUP), before, strict=True):
            signal.signal(number, handler)


def test_a_forked_child_ends_by_the_signal_as_ever():
    with stopping():
        stop_requested()
        child = os.fork()
        if child == 0:
            time.sleep(30)
            os._exit(0)
        os.kill(child, signal.SIGTERM)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM


@both
def test_the_command_line_keeps_the_record_and_says_how_it_ended(tmp_path: Path, signum):
    script = textwrap.dedent(
        """
        import os, sys, threading, time
        from pathlib import Path
        from clmeta.cli.app import main
        def watch():
            while not list(Path(sys.argv[1]).glob("*/trajectory")):
                time.sleep(0.02)
            time.sleep(0.5)
            os.kill(os.getpid(), int(sys.argv[2]))
        threading.Thread(target=watch, daemon=True).start()
        main(["run", "-s", "tasks=2", "-s", "steps_per_task=1000000", "-o", sys.argv[1]])
        """
    )
    command = [sys.executable, "-c", script, str(tmp_path / "out"), str(int(signum))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 128 + signum
    assert f"error: stopped by {signum.name}" in done.stderr and "Traceback" not in done.stderr
    (run,) = (tmp_path / "out").glob("seed-*")
    assert len(pd.read_parquet(run / "trajectory")) > 0
