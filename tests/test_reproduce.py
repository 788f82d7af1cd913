"""The paper's Figure 4 as a sweep, and the report made of its runs."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pandas as pd
import pytest

from clmeta import BadArgument
from clmeta.analysis.published import ACCURACY, QUANTITIES, published_curves
from clmeta.cli.reproduction import EXPERIMENTS, _as_published, _every
from clmeta.sweep.protocol import ROWS, figure_4


def test_adamw_alone_is_two_adaptive_and_nine_fixed_methods_with_five_seeds():
    configs = figure_4().configs()
    assert len(configs) == 55
    fixed = {config.alpha0 for config in configs if config.meta == "none"}
    assert len(fixed) == 9
    assert min(fixed) == pytest.approx(1e-5)
    assert max(fixed) == pytest.approx(5e-3)
    adaptive = {config.blocks for config in configs if config.meta == "adam"}
    assert adaptive == {"scalar", "head"}


def test_runs_of_one_seed_share_all_but_the_step_sizes():
    for config in figure_4(seeds=[3]).configs():
        assert config.stream == "cifar100-10x10"
        assert (config.model, config.gamma, config.weight_decay) == ("cnn", 0.999, 0.1)
        assert config.base_options == {"accumulate": True}


@pytest.mark.parametrize("base", ROWS.names())
def test_every_row_has_its_published_meta_update_and_curves(base):
    row = ROWS.get(base)
    configs = figure_4([base], [0]).configs()
    assert {config.meta for config in configs} == {"none", row.meta}
    assert row.alpha0 in row.grid
    for variant in ("fixed", "scalar", "head"):
        curve = published_curves(row.published, variant, ACCURACY)
        assert curve["step"].iloc[-1] == 50_000
    for quantity in ("alpha_block0", "alpha_block1"):
        assert published_curves(row.published, "head", quantity)["value"].min() > 0
    assert set(QUANTITIES) == {"all", "body", "head"}


def test_published_accuracies_are_those_of_the_authors(shared):
    full = pd.read_csv(shared / "data" / "published_cifar100_curves.csv")
    full = full[(full["classes_per_task"] == 10) & (full["quantity"] == ACCURACY)]
    last = full[full["step"] == 50_000].set_index(["base", "variant"])["value"]
    for base in ("AdamW", "RMSProp", "Lion", "SGDm"):
        for ours, theirs in (("fixed", "fixed"), ("scalar", "scalar"), ("head", "2 blocks")):
            value = published_curves(base, ours)["value"].iloc[-1]
            assert value == pytest.approx(last[base, theirs], rel=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bases": ["adam2"]}, "bases='adam2': unknown base update"),
        ({"bases": []}, "name some of adamw"),
        ({"bases": ["lion", "lion"]}, "name each base update once"),
        ({"seeds": []}, "at least one"),
    ],
)
def test_bad_input(options, message):
    with pytest.raises(BadArgument, match=message):
        figure_4(**options)


@pytest.fixture
def small_protocol(monkeypatch, tmp_path):
    """Two fixed step sizes, images of noise, in CIFAR-100's shape."""
    monkeypatch.setitem(
        ROWS._entries, "adamw", dataclasses.replace(ROWS.get("adamw"), grid=(1e-4, 1e-3))
    )
    make = np.random.default_rng(0)
    path = tmp_path / "noise.npz"
    labels = np.arange(40) % 4
    images = make.integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)
    np.savez(path, x_train=images, y_train=labels, x_test=images[:8], y_test=labels[:8])
    return path


def test_one_task_leaves_a_table_without_switches(small_protocol, tmp_path):
    options = {"dataset": str(small_protocol), "tasks": 1, "classes_per_task": 4}
    report = EXPERIMENTS.get("figure-4")(tmp_path / "out", ["adamw"], [0], processes=1, **options)
    table = pd.read_csv(tmp_path / "out" / "table.csv")
    assert table["rise"].isna().all()
    assert table["end_over_start"].notna().sum() == 2
    assert "figure-8.png" not in {path.name for path in report.files}


@pytest.mark.parametrize(
    ("options", "same"),
    [
        ({}, True),
        ({"dataset": "photos.npz"}, False),
        ({"tasks": 5, "classes_per_task": 20}, False),
        ({"steps_per_task": 100}, False),
    ],
)
def test_published_curves_stand_beside_the_same_experiment_only(options, same):
    assert _as_published(figure_4(**options).configs()[0]) is same


def test_one_call_leaves_runs_table_and_figures(small_protocol, tmp_path):
    folder = tmp_path / "out"
    options = {"dataset": str(small_protocol), "tasks": 2, "classes_per_task": 2}
    report = EXPERIMENTS.get("figure-4")(folder, ["adamw"], [0, 1], processes=1, **options)
    for path in report.files:
        assert path.stat().st_size > 0
    names = {path.name for path in report.files}
    assert names >= {"table.md", "figure-4.png", "figure-7.pdf", "figure-8.png"}
    table = pd.read_csv(folder / "table.csv")
    assert list(table["method"])[1:] == ["scalar", "2 blocks"]
    assert table["method"][0] in ("fixed 0.0001", "fixed 0.001")
    assert (table["seeds"] == 2).all()
    assert table["accuracy"].between(0, 100).all()
    assert math.isnan(table["gain"][0])
    gains = (table["accuracy"] - table["accuracy"][0])[1:]
    assert list(table["gain"])[1:] == pytest.approx(list(gains))
    assert any("edge" in warning for warning in report.warnings)
    stamps = {p: p.stat().st_mtime_ns for p in (folder / "runs").rglob("summary.json")}
    assert len(stamps) == 8
    EXPERIMENTS.get("figure-4")(folder, ["adamw"], [0, 1], processes=1, **options)
    assert {p: p.stat().st_mtime_ns for p in stamps} == stamps


@pytest.mark.parametrize(("steps", "every"), [(5000, 25), (400, 2), (30, 1)])
def test_peaks_are_looked_for_at_every_step_of_short_tasks(tmp_path, steps, every):
    tasks = pd.DataFrame({"task": [0, 1], "steps": [steps, 2 * steps]})
    tasks.to_parquet(tmp_path / "tasks.parquet")
    assert _every(tmp_path) == every
