"""The command line: what it prints, refuses and leaves behind."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from clmeta.cli import main
from clmeta.config import RunConfig
from clmeta.demo import ALPHA0, BEST_FIXED, demo_jobs, run_demo
from clmeta.display import alphas, duration
from clmeta.errors import BadArgument
from clmeta.parse import parse_blocks, parse_options, parse_seeds, parse_value
from clmeta.report import percent, span

QUICK = ["-s", "tasks=2", "-s", "steps_per_task=20", "-m", "hidden=8"]


@pytest.fixture
def cli(tmp_path, monkeypatch, capsys):
    """Calls the command line in an empty folder: exit code, standard output, standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(list(arguments))
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    return call


# --- run ------------------------------------------------------------------------------------


def test_run_leaves_a_folder_for_each_seed_and_says_how_it_went(cli, tmp_path):
    code, out, err = cli("run", *QUICK, "--seeds", "0-1,5", "--blocks", "layer", "-o", "out")
    assert code == 0
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["seed-0", "seed-1", "seed-5"]
    shown = re.search(r"adamw/adam layer\W+3\W+([\d.]+)% ± ([\d.]+)", out)
    assert shown is not None
    accuracies = [
        json.loads((tmp_path / "out" / f"seed-{seed}" / "summary.json").read_text())[
            "cumulative_accuracy"
        ]
        for seed in (0, 1, 5)
    ]
    assert float(shown[1]) == pytest.approx(100 * sum(accuracies) / 3, abs=0.051)
    assert out.count("out/seed-") == 3
    assert err.count("finished after") == 3


def test_a_config_file_repeats_a_run_and_options_change_it(cli, tmp_path):
    cli("run", *QUICK, "--seeds", "3", "--alpha0", "1e-2", "-o", "one")
    assert cli("run", "--config", "one/seed-3/config.json", "-o", "two")[0] == 0
    assert cli("run", "-c", "one/seed-3", "--eta", "0.5", "-o", "three")[0] == 0
    one, two, three = (
        pd.read_parquet(tmp_path / name / "seed-3" / "trajectory")
        for name in ("one", "two", "three")
    )
    pd.testing.assert_frame_equal(one, two)
    assert not one.equals(three)
    changed = RunConfig.from_file(tmp_path / "three" / "seed-3")
    assert (changed.eta, changed.alpha0, changed.seed) == (0.5, 1e-2, 3)


def test_a_finished_run_is_replaced_only_when_told(cli, tmp_path):
    assert cli("run", *QUICK)[0] == 0
    (folder,) = (tmp_path / "runs").iterdir()
    summary = folder / "seed-0" / "summary.json"
    before = summary.read_text()
    code, _, err = cli("run", *QUICK)
    assert code == 1
    assert "finished already; pass --overwrite to replace" in err
    assert summary.read_text() == before
    assert cli("run", *QUICK, "--seeds", "0-1", "--skip-finished")[0] == 0
    assert summary.read_text() == before
    assert (folder / "seed-1" / "summary.json").exists()
    assert cli("run", *QUICK, "--overwrite")[0] == 0
    assert summary.read_text() != before


def test_different_methods_get_different_folders_by_themselves(cli, tmp_path):
    for more in (["--meta", "none"], ["--eta", "1e-2"], ["--eta", "2e-2"], ["-s", "epochs=1"]):
        assert cli("run", "-s", "tasks=1", "-s", "batch_size=200", "--no-evaluate", *more)[0] == 0
    assert len(list((tmp_path / "runs").iterdir())) == 4


def test_a_failing_run_is_reported_after_the_others(cli, tmp_path):
    options = ["--meta", "none", "--base", "sgd", "--alpha0", "1e30", "--seeds", "0-1"]
    code, _, err = cli("run", *QUICK, *options, "-o", "out")
    assert code == 1
    last = err.strip().splitlines()[-1]
    assert last.startswith("error: 2 of 2 runs failed: out/seed-0: ")
    assert "Traceback" not in err


BAD = [
    (["--gamma", "3"], "gamma=3.0: a discount lies in [0, 1]"),
    (["--alpha0", "0"], "alpha0=0.0: a step size must be above 0"),
    (["--alpha0", "x"], "--alpha0"),
    (["--stream", "abrupt_classes", "-s", "tasks=20"], "tasks=20"),
    (["--stream", "abrupt"], "stream='abrupt': unknown stream; did you mean 'abrupt_classes'"),
    (["-s", "taks=3"], "taks=3: unknown option of stream 'permuted_inputs'; known: tasks"),
    (["-s", "tasks"], "stream-option='tasks': write name=value"),
    (["--dataset", "nowhere.npz"], "dataset='nowhere.npz'"),
    (["--dataset", "mnist", "--no-download"], "mnist"),
    (["--base", "adamx"], "base='adamx': unknown rule; did you mean 'adam'"),
    (["--blocks", "a=hidden;b=hidden.0"], "in block 'a' already"),
    (["--blocks", "a=hidden"], "parameters in no block: output.weight"),
    (["--seeds", "4-1"], "seeds='4-1': the range 4-1 runs backwards; write 1-4"),
    (["--device", "warp"], "device='warp'"),
    (["--config", "nowhere"], "config='nowhere': No such file"),
    (["--model", "nowhere:net"], "model='nowhere:net': cannot import 'nowhere'"),
    (["--gama", "1"], "No such option: --gama"),
    (["--jobs", "0"], "--jobs"),
]


@pytest.mark.parametrize(("options", "message"), BAD, ids=[" ".join(o) for o, _ in BAD])
def test_bad_input_is_one_line_and_nothing_is_written(cli, tmp_path, options, message):
    code, out, err = cli("run", *options)
    assert code == 2
    (line,) = err.strip().splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert out == ""
    assert list(tmp_path.iterdir()) == []


def test_a_corrupt_data_file_is_one_line(cli, tmp_path):
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04 not really")
    code, _, err = cli("run", "--dataset", "broken.npz")
    assert code == 2
    assert err.startswith("error: dataset='broken.npz'")
    assert err.count("\n") == 1


@pytest.mark.skipif(os.name != "posix" or not os.path.exists("/proc/version"), reason="Linux only")
def test_a_folder_that_cannot_be_written_is_named(cli):
    code, _, err = cli("run", *QUICK, "-o", "/proc/nowhere")
    assert code == 1
    assert "error: /proc/nowhere/seed-0: cannot make /proc/nowhere/seed-0" in err
    assert "Traceback" not in err


def test_interrupting_keeps_what_was_recorded(tmp_path):
    command = [sys.executable, "-m", "clmeta", "run", "-s", "steps_per_task=1000000", "-o", "out"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        while not (tmp_path / "out" / "seed-0" / "trajectory").exists():
            assert process.poll() is None, "it ended by itself"
        os.kill(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "Stopped. What was recorded is kept in out/seed-0" in err
    assert "Traceback" not in err
    assert not (tmp_path / "out" / "seed-0" / "summary.json").exists()


# --- plot, list, help, demo -----------------------------------------------------------------


def test_plot_draws_what_was_run(cli, tmp_path):
    cli("run", *QUICK, "--seeds", "0-1", "-o", "out")
    code, out, _ = cli("plot", "out", "-o", "figures", "-p", "trajectories", "-f", "png")
    assert code == 0
    assert out.split() == ["Figures:", "figures/trajectories.png"]
    assert (tmp_path / "figures" / "trajectories.png").read_bytes().startswith(b"\x89PNG")
    assert cli("plot", "out", "-p", "trajectory")[0] == 2
    code, _, err = cli("plot", "elsewhere")
    assert code == 1
    assert err.startswith("error: ")


def test_plot_says_which_runs_it_leaves_out(cli, tmp_path):
    cli("run", *QUICK, "--seeds", "0-1", "-o", "out")
    (tmp_path / "out" / "seed-1" / "summary.json").unlink()
    code, _, err = cli("plot", "out", "-p", "trajectories", "-f", "png")
    assert code == 0
    assert err.startswith("note: ")
    assert "did not finish" in err


@pytest.mark.parametrize(
    ("kind", "entry"),
    [
        ("rules", "adamw"),
        ("blocks", "layer"),
        ("streams", "abrupt_classes"),
        ("datasets", "digits"),
        ("models", "cnn"),
        ("strategies", "plain"),
        ("plots", "trajectories"),
    ],
)
def test_list_shows_every_registry(cli, kind, entry):
    code, out, _ = cli("list", kind)
    assert code == 0
    assert re.search(rf"^ *{entry} +\S", out, re.MULTILINE), out


def test_list_shows_options_with_defaults(cli):
    assert "rho=0.99, c=0.9" in cli("list", "rules")[1]
    assert "hidden=128" in cli("list", "models")[1]
    assert "tasks=10" in cli("list", "streams")[1]


def test_the_help_names_every_option_of_a_run(cli):
    code, out, _ = cli("run", "--help")
    assert code == 0
    for option in RunConfig().to_dict():
        name = {"seed": "seeds"}.get(option, re.sub("options$", "option", option))
        assert f"--{name.replace('_', '-')} " in out, name


def test_defaults_in_the_help_are_those_of_a_run(cli):
    text = " ".join(re.sub(r"[│╭╮╰╯─]", " ", cli("run", "--help")[1]).split())
    for option in ("stream", "dataset", "model", "base", "meta", "blocks", "strategy", "device"):
        value = getattr(RunConfig(), option)
        assert re.search(rf"--{option} .*?Default: {value}\.", text), option
    for option in ("alpha0", "eta", "gamma", "weight-decay", "threads"):
        found = re.search(rf"--{option} .*?Default: ([\d.e-]+)\.", text)
        assert found is not None, option
        assert float(found[1]) == getattr(RunConfig(), option.replace("-", "_"))


def test_without_a_command_the_help_is_shown_and_nothing_fails_loudly(cli):
    code, out, err = cli()
    assert code == 2
    assert "demo" in out + err
    assert "error" not in err


def test_the_demo_compares_what_it_says():
    jobs = demo_jobs(Path("demo"), [0, 1, 2])
    assert len(jobs) == 9
    assert len({job.folder for job in jobs}) == 9
    streams = {(j.config.stream, j.config.dataset, j.config.model, j.config.base) for j in jobs}
    assert streams == {("permuted_inputs", "digits", "mlp", "adamw")}
    fixed, scalar, layer = jobs[0].config, jobs[3].config, jobs[6].config
    assert (fixed.meta, fixed.alpha0) == ("none", BEST_FIXED)
    assert (scalar.blocks, scalar.alpha0, scalar.meta) == ("scalar", ALPHA0, "adam")
    assert (layer.blocks, layer.alpha0, layer.meta) == ("layer", ALPHA0, "adam")


def test_the_demo_ends_with_table_folders_and_figures(tmp_path, monkeypatch, capsys):
    """As the demo, on two short tasks and one seed."""
    monkeypatch.setenv("COLUMNS", "200")
    short = RunConfig(stream_options={"tasks": 2, "steps_per_task": 60})
    monkeypatch.setattr("clmeta.demo.SETTING", short)
    run_demo(tmp_path / "demo", seeds=(0,), processes=1)
    out = capsys.readouterr().out
    for method in ("fixed 0.002", "adaptive, scalar", "adaptive, per layer"):
        assert re.search(rf"{method}\W+1\W+[\d.]+%", out), method
    figures = re.findall(r"^ +(\S+/figures/\S+)$", out, re.MULTILINE)
    assert len(figures) >= 8
    assert all(os.path.getsize(figure) > 1000 for figure in figures)
    folders = re.findall(r"^ +(\S+/runs/\S+)$", out, re.MULTILINE)
    assert len(folders) == 3
    before = [os.stat(f"{folder}/summary.json").st_mtime_ns for folder in folders]
    shutil.rmtree(tmp_path / "demo" / "figures")
    run_demo(tmp_path / "demo", seeds=(0,), processes=1)
    assert [os.stat(f"{folder}/summary.json").st_mtime_ns for folder in folders] == before
    assert all(os.path.exists(figure) for figure in figures)


# --- words to values ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5", 5),
        ("1e-3", 1e-3),
        (".5", 0.5),
        ("true", True),
        ("null", None),
        ("[64, 64]", [64, 64]),
        ("crop-flip", "crop-flip"),
    ],
)
def test_values_are_json_or_text(text, value):
    assert parse_value(text) == value
    assert parse_options("x", [f"some-name={text}"]) == {"some_name": value}


def test_blocks_are_names_or_prefixes():
    assert parse_blocks("layer") == "layer"
    written = parse_blocks("body=features, classifier.1; head=classifier.3")
    assert written == {"body": ["features", "classifier.1"], "head": ["classifier.3"]}
    assert parse_blocks('{"body": "features", "head": "*"}') == {"body": "features", "head": "*"}
    for wrong in ("body=", "body=a;body=b", "=a", "body=a;b", "{body"):
        with pytest.raises(BadArgument, match="blocks="):
            parse_blocks(wrong)


def test_seeds_are_numbers_and_ranges():
    assert parse_seeds("3") == [3]
    assert parse_seeds("0-2, 7,9-10") == [0, 1, 2, 7, 9, 10]
    for wrong in ("", "a", "1-", "-1", "1,1", "0-2,1"):
        with pytest.raises(BadArgument, match="seeds="):
            parse_seeds(wrong)


def test_options_are_given_once_with_a_value():
    with pytest.raises(BadArgument, match="twice"):
        parse_options("stream-option", ["a=1", "a=2"])
    assert parse_options("stream-option", None) is None


# --- how numbers are shown --------------------------------------------------------------------


def test_numbers_are_shown_shortly():
    assert alphas({"all": 1.234e-3}) == "alpha 1.2e-03"
    assert alphas(dict.fromkeys("abcd", 1e-3) | {"e": 1e-5}) == "alpha 1.0e-05..1.0e-03"
    assert [duration(s) for s in (8.4, 125, 3725)] == ["8 s", "2 min 05 s", "1 h 02 min"]
    assert percent([0.5]) == "50.0%"
    assert percent([None]) == "-"
    assert span([{"a": 1e-4, "b": 1e-2}, {"a": 1e-2, "b": 1e-2}]) == "1.0e-03 to 1.0e-02"


def test_intervals_are_students():
    """Three values 1, 2, 3 percent: half-width 4.303 / sqrt(3) = 2.48 (t with 2 freedoms)."""
    assert percent([0.01, 0.02, 0.03]) == "2.0% ± 2.5"
