"""Only programs that nobody else can have put there are loaded; failures are remembered."""

from __future__ import annotations

import os
import time
import warnings

import pytest
import torch
from optimizer_parts import needs_compiler

from clmeta.engines import native
from clmeta.native import cc
from clmeta.native.program import StepProgram
from clmeta.rules import SGD

SOURCE = "double answer(void) { return 42; }"
pytestmark = needs_compiler


def fresh():
    """As a process that has just begun."""
    for remembered in (cc.load, cc._own):
        remembered.cache_clear()
    cc._failed.clear()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CLMETA_CACHE", str(tmp_path / "in" / "cache"))
    fresh()
    yield tmp_path / "in" / "cache"
    monkeypatch.undo()
    fresh()


def test_the_folder_is_the_users_own(cache):
    assert cc.load(SOURCE).answer is not None
    assert cache.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("which", ["cache", "parent"])
@pytest.mark.parametrize("mode", [0o777, 0o770, 0o1777])
def test_a_folder_that_others_can_write_to_is_not_used(cache, which, mode):
    cc.load(SOURCE)
    (kept,) = cache.iterdir()
    kept.unlink()  # and not overwritten, as this process has loaded it
    kept.write_bytes(b"not a program")
    open_one = cache if which == "cache" else cache.parent
    open_one.chmod(mode)
    fresh()
    if which == "parent" and mode == 0o1777:  # as /tmp: others can't replace what lies in it
        assert cc.load(SOURCE).answer is not None
        assert kept.read_bytes() != b"not a program"
        return
    with pytest.warns(RuntimeWarning, match=r"as others could change .*CLMETA_CACHE"):
        assert cc.load(SOURCE).answer is not None
    with warnings.catch_warnings():  # said once
        warnings.simplefilter("error")
        assert cc.load(SOURCE + " ").answer is not None
    assert kept.read_bytes() == b"not a program"
    open_one.chmod(0o700)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize("which", ["cache", "parent"])
def test_a_folder_of_somebody_else_is_not_used(cache, which):
    cache.mkdir(parents=True)
    os.chown(cache if which == "cache" else cache.parent, 12345, 12345)
    with pytest.warns(RuntimeWarning, match="others could change"):
        assert cc.load(SOURCE).answer is not None
    assert not list(cache.iterdir())


def test_a_program_that_others_can_write_to_is_built_again(cache):
    cc.load(SOURCE)
    (kept,) = cache.iterdir()
    kept.chmod(0o666)
    fresh()
    cc.load(SOURCE)
    (kept,) = cache.iterdir()
    assert kept.stat().st_mode & 0o022 == 0


@pytest.mark.parametrize("again", ["in this process", "in another", "much later"])
def test_a_failed_build_is_not_tried_again_for_a_while(cache, monkeypatch, again):
    with pytest.raises(cc.CannotBuild, match="error"):
        cc.load("no C at all")
    (failed,) = cache.glob("*.failed")
    tried = []
    monkeypatch.setattr(cc, "_build", lambda *args: tried.append(args) or failed)
    if again != "in this process":
        fresh()
    if again == "much later":
        long_ago = time.time() - cc.REMEMBERED - 1
        os.utime(failed, (long_ago, long_ago))
    with pytest.raises((cc.CannotBuild, OSError)):
        cc.load("no C at all")
    assert bool(tried) == (again == "much later")


def test_what_a_kill_left_behind_is_cleared_away(cache):
    dead, busy = cache / "build-dead", cache / "build-busy"
    for folder in (dead, busy):
        folder.mkdir(parents=True)
    cache.chmod(0o700)
    long_ago = time.time() - cc.DEAD - 1
    os.utime(dead, (long_ago, long_ago))
    cc.load(SOURCE)
    assert not dead.exists()
    assert busy.exists()


def test_a_program_without_a_function_is_no_program(cache, monkeypatch):
    whole = cc.load
    monkeypatch.setattr(cc, "load", lambda source: whole(SOURCE))
    with pytest.raises(cc.CannotBuild, match="has no products"):
        StepProgram(SGD(), SGD(), True, False, torch.float32)


@pytest.mark.parametrize(
    "change",
    [
        ("return total;\n}", "return 2 * total;\n}"),
        ("products_of(first, last, j); }", "(void)first; (void)last; (void)j; }"),
        ("moves_of(first, last, j); }", "(void)first; (void)last; (void)j; }"),
        ("a[q] * dot", "dot"),
        ("const T dw = -(", "const T dw = ("),
    ],
)
def test_a_program_that_computes_something_else_is_not_used(cache, monkeypatch, change):
    whole = cc.load
    monkeypatch.setattr(cc, "load", lambda source: whole(source.replace(*change)))
    native._build.cache_clear()
    reason = native.why_not_native(SGD(), SGD(), None, torch.device("cpu"), torch.float32)
    native._build.cache_clear()
    assert "what its formula does not" in reason
