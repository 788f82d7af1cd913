"""The command line: what it prints, refuses and leaves behind."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from clmeta.cli.app import main
from clmeta.runs.config import RunConfig
from clmeta.runs.runner import _load

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
    # Equal runs within one second may have equal summaries; when the file was written tells.
    written = summary.stat().st_mtime_ns
    assert cli("run", *QUICK, "--overwrite")[0] == 0
    assert summary.stat().st_mtime_ns > written


def test_finished_runs_of_other_options_are_not_taken_for_ones_own(cli, tmp_path):
    assert cli("run", *QUICK, "-o", "out")[0] == 0
    summary = tmp_path / "out" / "seed-0" / "summary.json"
    before = summary.read_text()
    code, out, err = cli("run", *QUICK, "--eta", "0.5", "-o", "out", "--skip-finished")
    assert code == 1
    assert "out/seed-0': holds a finished run of other options; pass --overwrite" in err
    assert out == ""
    assert summary.read_text() == before
    assert cli("run", *QUICK, "--threads", "2", "-o", "out", "--skip-finished")[0] == 0
    assert summary.read_text() == before
    both = ("--skip-finished", "--overwrite")
    assert cli("run", *QUICK, "--eta", "0.5", "-o", "out", *both)[0] == 0
    assert RunConfig.from_file(summary.parent).eta == 0.5


def test_a_run_is_repeated_only_on_the_data_that_it_saw(cli, tmp_path):
    draw = np.random.default_rng(0)

    def write(count):
        x, y = draw.integers(0, 256, (count, 6, 6), dtype=np.uint8), np.arange(count) % 3
        np.savez("data.npz", x_train=x, y_train=y, x_test=x, y_test=y)
        _load.cache_clear()

    write(30)
    assert cli("run", *QUICK, "--dataset", "data.npz", "-o", "one")[0] == 0
    assert cli("run", "-c", "one/seed-0", "-o", "two")[0] == 0
    write(33)
    code, _, err = cli("run", "-c", "one/seed-0", "-o", "three")
    assert code == 2
    assert "dataset='data.npz': is not the data that the run saw" in err
    assert "n_train 30 then, 33 now" in err and err.count("\n") == 1
    assert not (tmp_path / "three").exists()
    assert cli("run", "-c", "one/seed-0", "--dataset", "data.npz", "-o", "three")[0] == 0


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
    (["--stream", "input-permuted-mnist", *QUICK, "--no-download"], "mnist"),
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


# --- plot, list, help -----------------------------------------------------------------------


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
