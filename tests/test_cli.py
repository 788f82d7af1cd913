"""The command line: what it prints, refuses and leaves behind."""

from __future__ import annotations

import json
import os
import re
import signal
import time

import numpy as np
import pandas as pd
import pytest

from clmeta.runs.config import RunConfig
from clmeta.runs.prepared import _load

QUICK = ["-s", "tasks=2", "-s", "steps_per_task=20", "-m", "hidden=8"]


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


def test_a_config_may_be_a_toml_file_or_a_sweep_s_file_of_one_method(cli, tmp_path):
    (tmp_path / "run.toml").write_text(
        'blocks = "layer"\nmodel_options.hidden = 8\nalpha_max = inf\n'
        'alpha0 = {output = 1e-2, "*" = 1e-3}\n[stream_options]\ntasks = 2\nsteps_per_task = 20\n'
    )
    assert cli("run", "-c", "run.toml", "-s", "tasks=1", "-o", "one")[0] == 0
    config = RunConfig.from_file(tmp_path / "one" / "seed-0")
    assert config.stream_options == {"tasks": 1, "steps_per_task": 20}
    assert (config.alpha0, config.alpha_max) == ({"output": 1e-2, "*": 1e-3}, float("inf"))
    (tmp_path / "sweep.toml").write_text(
        'seeds = "1-2"\noutput = "two"\n[run]\nstream_options = {tasks = 1, steps_per_task = 5}\n'
    )
    assert cli("run", "-c", "sweep.toml")[0] == 0
    assert sorted(p.name for p in (tmp_path / "two").iterdir()) == ["seed-1", "seed-2"]
    code, _, err = cli("run", "-c", "sweep.toml", "--config", "sweep.toml", "--meta", "none")
    assert code == 1 and "two/seed-1, two/seed-2: finished already" in err
    (tmp_path / "sweep.toml").write_text("grid.alpha0 = [1e-3, 1e-2]\n")
    code, _, err = cli("run", "-c", "sweep.toml")
    assert code == 2
    assert "--config='sweep.toml': is a sweep of 2 methods; use clmeta sweep" in err


def test_options_of_what_another_takes_the_place_of_go_with_it(cli, tmp_path):
    rho = ("--base", "sgdm", "--base-option", "rho=0.5")
    assert cli("run", *QUICK, *rho, "-o", "one")[0] == 0
    assert cli("run", "-c", "one/seed-0", "--base", "lion", "-o", "two")[0] == 0
    config = RunConfig.from_file(tmp_path / "two" / "seed-0")
    assert (config.base, config.base_options) == ("lion", {})
    assert config.stream_options == {"tasks": 2, "steps_per_task": 20}


def test_a_finished_run_is_replaced_only_when_told(cli, tmp_path):
    assert cli("run", *QUICK)[0] == 0
    (folder,) = (tmp_path / "runs").iterdir()
    summary = folder / "seed-0" / "summary.json"
    before = summary.read_text()
    code, _, err = cli("run", *QUICK)
    assert code == 1
    assert "finished already; give --overwrite to replace" in err
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
    assert "out/seed-0: holds a finished run of other options; give --overwrite" in err
    assert out == ""
    assert summary.read_text() == before
    assert cli("run", *QUICK, "--threads", "2", "-o", "out", "--skip-finished")[0] == 0
    assert summary.read_text() == before
    assert cli("run", *QUICK, "--eta", "0.5", "-o", "out", "--overwrite")[0] == 0
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
    options = [
        "--meta",
        "none",
        "--base",
        "sgd",
        "--alpha0",
        "1e18",
        "--weight-decay",
        "1",
        "--seeds",
        "0-1",
    ]
    code, _, err = cli("run", *QUICK, *options, "-o", "out")
    assert code == 1
    last = err.strip().splitlines()[-1]
    assert last.startswith("error: 2 of 2 runs failed: out/seed-0")
    assert "Traceback" not in err


@pytest.mark.skipif(os.name != "posix" or not os.path.exists("/proc/version"), reason="Linux only")
def test_a_folder_that_cannot_be_written_is_named(cli):
    code, _, err = cli("run", *QUICK, "-o", "/proc/nowhere")
    assert code == 1
    assert err.startswith("error: cannot write /proc/nowhere")
    assert "Traceback" not in err


def test_interrupting_keeps_what_was_recorded(tmp_path, reader):
    words = ["run", "-s", "steps_per_task=1000000", "-o", "out"]
    task = reader.start(tmp_path, ["clmeta", *words], COLUMNS="200")
    while not (tmp_path / "out" / "seed-0" / "trajectory").exists():
        assert task.going, "it ended by itself"
        time.sleep(0.01)
    os.kill(task.pid, signal.SIGINT)
    assert task.wait() == 130
    err = task.err()
    assert "seed 0: interrupted after" in err and "finished after" not in err
    assert "Stopped. What was recorded is kept in out/seed-0" in err
    assert "the same command with --skip-finished does the rest" in " ".join(err.split())
    assert "Traceback" not in err
    assert not (tmp_path / "out" / "seed-0" / "summary.json").exists()


# --- plot -------------------------------------------------------------------------------------


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


def test_figures_are_replaced_only_when_told(cli, tmp_path):
    cli("run", *QUICK, "-o", "out")
    words = ("plot", "out", "-p", "trajectories", "-f", "png")
    assert cli(*words)[0] == 0
    figure = tmp_path / "figures" / "trajectories.png"
    figure.write_bytes(b"mine")
    code, out, err = cli(*words)
    assert (code, out) == (1, "")
    assert err.startswith("error: figures/trajectories.png: there already; give --overwrite")
    assert figure.read_bytes() == b"mine"
    assert cli(*words, "--overwrite")[0] == 0
    assert figure.read_bytes().startswith(b"\x89PNG")


def test_plot_says_which_runs_it_leaves_out(cli, tmp_path):
    cli("run", *QUICK, "--seeds", "0-1", "-o", "out")
    (tmp_path / "out" / "seed-1" / "summary.json").unlink()
    code, _, err = cli("plot", "out", "-p", "trajectories", "-f", "png")
    assert code == 0
    assert err.startswith("Note: ")
    assert "did not finish" in err
