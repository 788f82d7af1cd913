"""Generated bad input, on the command line, in files and in Python: refused in words, always."""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from collections import Counter

import numpy as np
import pytest
from bad_calls_parts import CALLS, CONFIG, calls
from bad_input_parts import files, lines
from hypothesis import HealthCheck, given, settings

from clmeta.cli.app import main
from clmeta.errors import BadArgument, ClmetaError
from clmeta.runs.runner import run
from clmeta.sweep import run_sweep
from clmeta.sweep.run import LocalLauncher

#: How messages begin: the argument, what was given, a colon; and how those about usage end.
NAMED = re.compile(r"error: .+?(=.*)?: .+\n", re.S)
USAGE = re.compile(r"error: .+\. See clmeta ?\w* --help\.\n", re.S)
LONGEST = 2200


def few(examples: int):
    """Settings: so many examples, the same ones each time."""
    return settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=examples < 1000,
        suppress_health_check=list(HealthCheck),
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A working folder with a finished run and sweep, and files that are not what they say."""
    at = tmp_path_factory.mktemp("place")
    run(CONFIG, at / "done")
    run_sweep([CONFIG], at / "sweep", launcher=LocalLauncher(1))
    (at / "file").write_text("text")
    np.savez(at / "broken.npz", x_train=np.array([None]), allow_pickle=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(at)
        patch.setenv("HOME", str(at / "home"))
        patch.setenv("CLMETA_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield at


@pytest.fixture(scope="module")
def tally():
    """How generated input ended, printed for who asks with -s."""
    counts: Counter[str] = Counter()
    yield counts
    print(dict(sorted(counts.items())))


def check_line(words, tally) -> None:
    """A command line ends by itself: well, or with one line that says what is wrong."""
    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.raises(SystemExit) as ended,
    ):
        main(words)
    code, said = int(ended.value.code or 0), err.getvalue()
    tally[f"lines: exit status {code}"] += 1
    printed = out.getvalue() + said
    assert printed.replace("\n", "").isprintable(), printed
    if code == 0:
        return
    assert code in (1, 2), said
    assert said.startswith("error: ") and said.count("\n") == 1, said
    assert len(said) < LONGEST, said
    assert code == 1 or NAMED.fullmatch(said) or USAGE.fullmatch(said), said


def check_file(content, place, tally) -> None:
    """A file of options of any content, as JSON and as TOML."""
    for name in ("file.json", "file.toml"):
        (place / name).write_bytes(content)
        check_line(["sweep", name, "--dry-run", "--no-download"], tally)


def check_call(call, place, tally) -> None:
    """A function takes what it is given, or raises one of our errors in one line."""
    name, given = call
    function, _ = CALLS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            function(place, **given)
        except ClmetaError as error:
            said = str(error)
            tally[f"calls: {type(error).__name__}"] += 1
            assert said.isprintable() and len(said) < LONGEST, said
            assert not isinstance(error, BadArgument) or NAMED.fullmatch(f"error: {said}\n"), said
        else:
            tally["calls: taken"] += 1


@few(120)
@given(words=lines())
def test_any_words(place, tally, words):
    check_line(words, tally)


@few(60)
@given(content=files)
def test_any_file(place, tally, content):
    check_file(content, place, tally)


@few(200)
@given(call=calls())
def test_any_arguments(place, tally, call):
    check_call(call, place, tally)


@pytest.mark.slow
@few(4000)
@given(words=lines())
def test_thousands_of_words(place, tally, words):
    check_line(words, tally)


@pytest.mark.slow
@few(2000)
@given(content=files)
def test_thousands_of_files(place, tally, content):
    check_file(content, place, tally)


@pytest.mark.slow
@few(4000)
@given(call=calls())
def test_thousands_of_arguments(place, tally, call):
    check_call(call, place, tally)
