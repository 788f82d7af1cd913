"""Names and paths of any characters, on any terminal: shown as they are, obeyed by nothing."""

from __future__ import annotations

import io
import json
import os
import pty
import sys

import pytest

from clmeta.cli.app import main
from clmeta.cli.console import console, print_paths, print_table
from clmeta.errors import BadArgument, bad, brief, printable
from clmeta.ground.names import LONGEST_NAME, file_name
from clmeta.runs.config import RunConfig
from clmeta.sweep.folders import default_output, run_folder

QUICK = ("-s", "tasks=1", "-s", "steps_per_task=10", "-m", "hidden=4", "--no-evaluate")
ODD = [
    "[/]",
    "[red]",
    ":smile:",
    "\x1b[2J\x1b]0;title\x07",
    "a\rb\x08",
    "\x9b31m",
    "\u202egnp",
    "$\\frac$",
]


def obeyed(text: str) -> str:
    """The characters that a terminal would act on."""
    return "".join(c for c in text if not c.isprintable() and c not in "\n")


@pytest.mark.parametrize("name", ODD)
def test_a_run_of_any_name_ends_and_is_drawn_and_chosen_from(cli, tmp_path, name):
    assert cli("run", *QUICK, "--name", name, "--seeds", "0-1", "-o", "out")[0] == 0
    said = [cli("plot", "out", "-f", "png"), cli("run", "-c", "out/seed-0", "--name=x" + name)]
    for config in (tmp_path / "out").rglob("config.json"):
        assert json.loads(config.read_text())["name"] == name
    for code, out, err in said:
        assert code == 0, err
        assert obeyed(out + err) == ""


@pytest.mark.parametrize("name", ODD)
def test_on_a_terminal_too(monkeypatch, tmp_path, name):
    """The bar's thread must not die of a name, and its own codes are all that come out."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TERM", "xterm")
    ours, theirs = pty.openpty()
    with open(theirs, "w", encoding="utf-8") as terminal, pytest.raises(SystemExit) as ended:
        monkeypatch.setattr(sys, "stderr", terminal)
        main(["run", *QUICK, "--name", name, "-o", "out"])
    monkeypatch.undo()
    assert ended.value.code == 0
    seen = os.read(ours, 1 << 16).decode()
    os.close(ours)
    assert "finished" in seen
    assert not any(each in seen for each in ("\x1b[2J", "\x07", "\x08", "\x9b", "\u202e"))


@pytest.mark.parametrize("text", ODD)
def test_every_way_to_print_shows_codes_as_text(capsys, text):
    print_table(text, (text, text), [(text, text)])
    print_paths(text, [text])
    console().print(text)
    out = capsys.readouterr().out
    assert obeyed(out) == ""
    assert out.count(printable(text)) == 8
    with pytest.raises(BadArgument) as error:
        bad(text, text, text)
    assert obeyed(str(error.value)) == ""


@pytest.mark.parametrize(
    "words",
    [
        ("run", "--dataset", "\x1b[2J/x"),
        ("run", "--config", "\x1b[2J"),
        ("plot", "\x1b[2J"),
        ("best", "\x1b[2J\x07"),
        ("run", "--\x1b[2J"),
        ("\x1b[2J",),
        ("run", "--output", "\udcff\x1b"),
    ],
)
def test_errors_show_what_was_typed_and_obey_nothing(cli, words):
    code, out, err = cli(*words, *(["--dry-run"] if words[0] == "run" else []))
    assert (code != 0) == ("--output" not in words)
    assert obeyed(out + err) == ""


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_output_of_any_encoding_is_written_to_the_end(cli, tmp_path, monkeypatch, encoding):
    """Percent with an interval, a bar, and a folder's name that no encoding here has."""
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding=encoding))
    folder = "ü\u4e00\udcff"
    code, _, err = cli("run", *QUICK, "--seeds", "0-1", "-o", folder, "--name", "±\u4e00")
    assert code == 0, err
    sys.stdout.flush()
    text = written.getvalue().decode(encoding)
    assert ("±" in text) == (encoding != "ascii")
    assert ("\\u4e00" in text) == (encoding != "utf-8")
    assert len(list((tmp_path / folder).glob("*/summary.json"))) == 2


LONG = {"ä" * 300: "hidden", "b" * 300: "*"}


@pytest.mark.parametrize(
    "options",
    [
        {"blocks": LONG, "alpha0": dict.fromkeys(LONG, 1e-4)},
        {"alpha0": {"\U0001f600" * 200: 1e-3}},
        {"base": "torch.optim:" + "A" * 400},
        {"stream_options": {"x" * 500: "y" * 500}},
        {"dataset": "d" * 400},
    ],
    ids=["blocks", "numbers", "base", "option", "dataset"],
)
def test_folders_are_named_so_that_they_can_be_made(tmp_path, options):
    configs = [RunConfig(**options, seed=seed) for seed in (0, 2**63 - 1)]
    places = [run_folder(tmp_path, config) for config in configs]
    for place in (*places, tmp_path / default_output(configs[:1])):
        place.mkdir(parents=True)
        (place.parent / f".progress-{place.name}.json.tmp").touch()
    assert len(set(places)) == 2


def test_names_that_fit_stay_and_long_ones_stay_apart():
    assert file_name("a b", "c/d") == "a-b-c-d"
    assert file_name("x" * LONGEST_NAME) == "x" * LONGEST_NAME
    one, two = file_name("x" * 300 + "1"), file_name("x" * 300 + "2")
    assert one != two and len(one.encode()) <= LONGEST_NAME


class Unspeakable:
    def __repr__(self):
        raise RuntimeError


VALUES = {
    "digits": 10**5000,
    "broken": Unspeakable(),
    "long": "x" * 10**6,
    "inside": [[10**9000]],
    "bytes": b"\x1b",
}


@pytest.mark.parametrize("kind", VALUES)
def test_a_value_of_any_kind_is_shown_in_few_characters(kind):
    value = VALUES[kind]
    assert 0 < len(brief(value)) <= 120
    with pytest.raises(BadArgument, match=r"^x=.*: must be otherwise$"):
        bad("x", value, "must be otherwise")
