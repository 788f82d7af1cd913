"""What the command line says of itself: help and lists, whole at every width, from one source."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from clmeta.cli.app import app
from clmeta.cli.console import print_table
from clmeta.cli.listing import KINDS
from clmeta.runs.config import OPTIONS, RunConfig
from clmeta.runs.parse import parse_value

COMMANDS = sorted(app.commands)


def words(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize("width", ["60", "80", "120"])
@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_fits_the_window_and_breaks_no_word(cli, monkeypatch, command, width):
    monkeypatch.setenv("COLUMNS", "10000")
    whole = set(cli(*command.split(), "--help")[1].split())
    monkeypatch.setenv("COLUMNS", width)
    code, out, _ = cli(*command.split(), "-h")
    assert code == 0
    assert set(out.split()) == whole
    assert max(map(len, out.splitlines())) <= int(width)


def test_the_help_has_every_option_of_a_run_with_its_default(cli):
    for command in ("run", "sweep"):
        text = words(cli(command, "--help")[1])
        for name, option in OPTIONS.items():
            if name != "seed":
                assert re.search(rf"{re.escape(option.flags[0].split('/')[0])}\b", text), name
                assert words(option.help) in text, name


def test_defaults_in_the_help_are_those_of_a_run():
    for name, option in OPTIONS.items():
        said = re.search(r"Default: (\S+)\.$", option.help)
        default = getattr(RunConfig(), name)
        if said is not None:
            shown = {"yes": True, "no": False}.get(said[1], parse_value(said[1]))
            assert shown == default, name
        else:
            assert default in ({}, (), None), name


def test_bounds_of_fine_step_sizes_are_said(cli):
    text = words(cli("run", "--help")[1])
    assert (
        "Smallest step size. Default: none; for node and weight blocks 1e-4 times alpha0." in text
    )
    assert "none; for node and weight blocks 100 times alpha0." in text


def test_without_a_command_the_help_is_shown_and_nothing_fails_loudly(cli):
    code, out, err = cli()
    assert code == 2
    assert "demo" in out
    assert err == ""


@pytest.mark.parametrize("kind", KINDS)
def test_list_shows_every_registry_with_options_as_they_are_typed(cli, monkeypatch, kind):
    code, out, _ = cli("list", kind)
    assert code == 0
    entry = {
        "rules": "adamw .* Options: rho=0.9, lam=0.999, eps=1e-10, accumulate=false.",
        "blocks": "layer +One step size per module",
        "streams": "abrupt_classes .*tasks=10, classes_per_task=null, head=shared",
        "datasets": "digits +1,797 images",
        "models": "mlp .*hidden=[64,64].",
        "engines": "native +C programs",
        "strategies": "replay .*mem_size=200",
        "plots": "trajectories +Step sizes over time",
    }[kind]
    assert re.search(entry.replace("[", r"\["), words(out)), out
    assert cli("list", kind)[1] == out, "remembered, it is the same"


@pytest.mark.parametrize("width", [60, 120])
def test_lists_break_no_word(cli, monkeypatch, width):
    whole = cli("list")[1].split()
    monkeypatch.setenv("COLUMNS", str(width))
    out = cli("list")[1]
    assert out.split() == whole
    assert max(map(len, out.splitlines())) <= width


def test_a_list_that_is_remembered_loads_nothing_heavy(cli, tmp_path):
    cli("list")
    code = (
        "import sys\nfrom clmeta.cli import main\ntry: main(['list'])\nexcept SystemExit: pass\n"
        "print([m for m in ('torch', 'pandas', 'avalanche') if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.strip() == "[]"
    assert "permuted_inputs" in done.stdout


@pytest.mark.parametrize("width", [60, 80, 120])
def test_tables_break_no_word_and_keep_every_cell(monkeypatch, capsys, width):
    rows = [
        ("adamw/adam scalar, accumulate=true", "3", "77.1% ± 0.4", "70.0% ± 10.4", "1e-3 to 1e-2"),
        ("sgd fixed 0.01", "3", "-", "-", "1e-2"),
    ]
    monkeypatch.setenv("COLUMNS", str(width))
    print_table("Runs", ("method", "seeds", "online\naccuracy", "test", "step sizes"), rows)
    out = capsys.readouterr().out
    for row in rows:
        for cell in row[1:]:
            assert cell in out
        assert all(word in out.split() for word in row[0].split())
    assert max(len(line.rstrip()) for line in out.splitlines()) <= width


def test_read_by_a_program_a_row_is_a_line(tmp_path):
    code = (
        "from clmeta.cli.console import print_table\n"
        "print_table('t', ('method', 'n'), [(' '.join(['word'] * 60), '1')])"
    )
    environment = {key: value for key, value in os.environ.items() if key != "COLUMNS"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert " ".join(["word"] * 60) in done.stdout
