"""A claim is held by one living process at a time, and never by a dead one for long."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import time

import pytest

from clmeta.errors import RunFolderError
from clmeta.sweep.claims import Claims, birth


@pytest.fixture
def one(tmp_path):
    with Claims(tmp_path) as claims:
        yield claims


def leave_behind(folder, **changes):
    """A claim on "run" as another process would have left it."""
    owner = {**Claims(folder).owner, **changes}
    (folder / "run.json").write_text(json.dumps(owner))


def dead_process() -> int:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    return ended.pid


def test_a_claim_is_given_to_one_and_after_its_release_to_the_next(tmp_path, one):
    with Claims(tmp_path) as other:
        assert one.take(["run"])
        assert other.holder_alive("run")
        assert not other.take(["run"])
        one.release(["run"])
        assert other.take(["run"])
        one.release(["run"])  # no longer its own
        assert other.holder_alive("run") is False  # its own does not count as another's
        assert one.holder_alive("run")


def test_several_are_claimed_together_or_not_at_all(tmp_path, one):
    with Claims(tmp_path) as other:
        assert other.take(["b"])
        assert not one.take(["a", "b"])
        assert other.take(["a"])


def test_a_claim_that_cannot_be_removed_ends_with_its_process(tmp_path, one, monkeypatch):
    assert one.take(["run"])

    def closed(*_, **__):
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", closed)
        one.release(["run"])
    leave_behind(tmp_path, pid=dead_process())
    with Claims(tmp_path) as other:
        assert other.take(["run"])


def test_leaving_releases_everything_and_leaves_no_file(tmp_path):
    with Claims(tmp_path) as claims:
        claims.take(["a", "b"])
    assert list(tmp_path.iterdir()) == []


def test_a_dead_process_of_this_machine_holds_nothing(tmp_path, one):
    leave_behind(tmp_path, pid=dead_process())
    assert not one.holder_alive("run")
    assert one.take(["run"])


def test_a_process_that_got_a_dead_one_s_number_holds_nothing(tmp_path, one):
    leave_behind(tmp_path, birth="long ago")
    assert one.take(["run"])


def test_a_living_process_of_this_machine_keeps_its_claim_even_if_it_is_suspended(tmp_path, one):
    leave_behind(tmp_path)
    os.utime(tmp_path / "run.json", (0, 0))
    assert not one.take(["run"])


def test_another_machine_keeps_its_claim_while_it_gives_signs_of_life(tmp_path, one):
    leave_behind(tmp_path, machine="elsewhere")
    assert not one.take(["run"])
    old = time.time() - one.patience - 1
    os.utime(tmp_path / "run.json", (old, old))
    assert one.take(["run"])


@pytest.mark.parametrize("years", [-1, 1])
def test_a_date_that_is_far_off_is_no_sign_of_life(tmp_path, one, years):
    leave_behind(tmp_path, machine="elsewhere")
    assert one.holder_alive("run")
    date = time.time() + years * 3e7
    os.utime(tmp_path / "run.json", (date, date))
    assert not one.holder_alive("run")
    assert one.take(["run"])


def test_claims_of_the_dead_are_removed_and_those_of_the_living_kept(tmp_path, one):
    leave_behind(tmp_path, pid=dead_process())
    (tmp_path / ".probe").write_text((tmp_path / "run.json").read_text())
    assert one.take(["b"])
    Claims(tmp_path).remove_dead()
    assert [path.name for path in tmp_path.iterdir()] == ["b.json"]


def test_signs_of_life_are_given_while_a_claim_is_held(tmp_path):
    with Claims(tmp_path, beat=0.01) as claims:
        claims.take(["run"])
        os.utime(tmp_path / "run.json", (0, 0))
        deadline = time.monotonic() + 10
        while (tmp_path / "run.json").stat().st_mtime == 0:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_a_requeued_task_takes_what_it_left_on_another_machine(tmp_path):
    leave_behind(tmp_path, machine="elsewhere", job="7")
    with Claims(tmp_path, job="8") as other, Claims(tmp_path, job="7") as same:
        assert not other.take(["run"])
        assert same.take(["run"])


def test_a_claim_cut_short_is_held_until_it_is_old(tmp_path, one):
    (tmp_path / "run.json").write_text('{"mach')
    assert not one.take(["run"])
    os.utime(tmp_path / "run.json", (0, 0))
    assert one.take(["run"])


def _grab(folder, go, won):
    with Claims(folder) as claims:
        go.wait()
        got = claims.take(["run"])
        won.put(got)
        go.wait()


def test_of_many_that_find_a_claim_left_behind_one_gets_it(tmp_path):
    leave_behind(tmp_path, pid=dead_process())
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    go, won = context.Barrier(6), context.Queue()
    grabbing = [context.Process(target=_grab, args=(tmp_path, go, won)) for _ in range(6)]
    for process in grabbing:
        process.start()
    assert sum(won.get(timeout=60) for _ in grabbing) == 1
    for process in grabbing:
        process.join()


def test_birth_marks_a_living_process_and_no_dead_one():
    assert birth(os.getpid()) == birth(os.getpid()) is not None
    assert birth(dead_process()) is None


def test_a_folder_that_cannot_be_written_says_what_to_do(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RunFolderError, match="choose an output folder that can be written"):
        Claims(tmp_path / "file" / "claims")
