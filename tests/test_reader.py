"""The process that does what users type in tests: each task alone, and failures that say why."""

from __future__ import annotations

import os
import signal

import pytest
from reader_parts import Reader


@pytest.fixture(scope="module")
def bare():
    """One without libraries."""
    reader = Reader()
    yield reader
    reader.close()


def test_a_reader_that_cannot_start_says_why(tmp_path):
    reader = Reader("no_such_module")
    with pytest.raises(RuntimeError, match=r"ended with 1:(.|\n)*No module named 'no_such"):
        reader.do(tmp_path, ["python", ""])
    assert not reader.alive
    with pytest.raises(RuntimeError, match="no_such_module"):
        reader.do(tmp_path, ["python", ""])
    reader.close()


def test_steps_share_a_process_and_tasks_do_not(bare, tmp_path):
    steps = (["file", "note.txt", "7"], ["python", "x = open('note.txt').read()"])
    task = bare.do(tmp_path, *steps, ["python", "print(x)"])
    assert (task.status, task.out().strip()) == (0, "7")
    task = bare.do(tmp_path, ["python", "print(x)"])
    assert task.status == 1 and "NameError" in task.failure


def test_the_first_step_that_fails_ends_a_task(bare, tmp_path):
    task = bare.do(tmp_path, ["python", "print(1)"], ["python", "exit(3)"], ["python", "print(2)"])
    assert (task.status, task.done) == (3, 2)
    assert [task.out(number).strip() for number in range(3)] == ["1", "", ""]


def test_tasks_have_an_environment_no_network_and_warnings_as_errors(bare, tmp_path):
    task = bare.do(tmp_path, ["python", "import os; print(os.environ['WORD'])"], WORD="given")
    assert task.out().strip() == "given"
    assert "WORD" not in os.environ
    for code, error in (
        ("import warnings; warnings.warn('slow')", "UserWarning: slow"),
        ("import socket; socket.create_connection(('127.0.0.1', 9))", "without a network"),
    ):
        task = bare.do(tmp_path, ["python", code])
        assert task.status == 1 and error in task.err()


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_task_can_be_ended(bare, tmp_path, how):
    task = bare.start(tmp_path, ["python", "import time\nprint(0, flush=True)\ntime.sleep(300)"])
    while not task.out():
        assert task.going
    os.kill(task.pid, how)
    assert task.wait() == (1 if how == signal.SIGINT else -how)
    assert ("KeyboardInterrupt" in task.err()) == (how == signal.SIGINT)


def test_what_a_test_leaves_does_not_hinder_the_next(bare, tmp_path):
    left = bare.start(tmp_path, ["python", "import time; time.sleep(300)"])
    assert bare.do(tmp_path, ["python", "print(1)"]).out().strip() == "1"
    assert left.status == -signal.SIGKILL
