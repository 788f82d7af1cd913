"""The demo: which runs it compares, and what it ends with."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest

from clmeta.cli.demo import ALPHA0, BEST_FIXED, demo_runs, run_demo
from clmeta.errors import RunFolderError
from clmeta.runs.config import RunConfig


def test_the_demo_compares_what_it_says():
    jobs = demo_runs(Path("demo"), [0, 1, 2])
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
    monkeypatch.setattr("clmeta.cli.demo.SETTING", short)
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
    other = RunConfig(stream_options={"tasks": 2, "steps_per_task": 50})
    monkeypatch.setattr("clmeta.cli.demo.SETTING", other)
    with pytest.raises(RunFolderError, match="finished run of other options; give --overwrite"):
        run_demo(tmp_path / "demo", seeds=(0,), processes=1)
