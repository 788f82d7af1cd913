"""Replicas: many learners in one process, each the run that `clmeta.runs.runner` makes of it."""

from __future__ import annotations

import itertools
import warnings

import pytest
from optimizer_parts import compiling
from replica_parts import assert_same_run, both, cnn, config, trajectory

from clmeta.engines.fuse import CannotCompile
from clmeta.replicas import chunk as _chunk
from clmeta.replicas.program import ReplicaWarning
from clmeta.rules import RULES as BY_NAME
from clmeta.rules import Rule

RULES = ("sgd", "sgdm", "rmsprop", "adamw", "lion")
METAS = ("none", "sgd", "sgdm", "rmsprop", "adam", "lion")
SHORT = {"tasks": 2, "steps_per_task": 30}


@pytest.mark.parametrize(("base", "meta"), list(itertools.product(RULES, METAS)))
def test_equal_single_runs_for_every_rule_pair(base, meta, tmp_path):
    alpha0 = 1e-4 if base == "lion" else 1e-3
    pair = {"base": base, "meta": meta, "stream_options": SHORT}
    configs = [
        config(**pair, seed=0, alpha0=alpha0),
        config(**pair, seed=1, alpha0=alpha0 / 2, blocks="head"),
    ]
    for folders in zip(*both(configs, tmp_path), strict=True):
        assert_same_run(*folders)


@pytest.mark.parametrize("base", RULES)
@pytest.mark.parametrize("blocks", ["node", "weight"])
def test_equal_single_runs_with_a_step_size_per_unit_or_weight(base, blocks, tmp_path):
    how = {"base": base, "blocks": blocks, "alpha0": 1e-4, "stream_options": SHORT}
    configs = [config(**how, seed=seed) for seed in (0, 1)]
    for folders in zip(*both(configs, tmp_path), strict=True):
        assert_same_run(*folders)


def test_learners_that_differ_in_everything_a_batch_allows(tmp_path):
    configs = [
        config(seed=3, alpha0=1e-4),
        config(seed=3, blocks="layer", eta=1e-3),
        config(seed=4, blocks={"all": "*"}, gamma=1.0, weight_decay=0.0),
        config(seed=5, blocks="tensor", alpha_max=2e-3, alpha_min=5e-4, eta=0.05),
        config(seed=6, stream_options={"tasks": 4, "steps_per_task": 50}),
        config(seed=7, stream="permuted_labels", evaluate=False),
    ]
    for folders in zip(*both(configs, tmp_path), strict=True):
        assert_same_run(*folders)


def test_different_rule_pairs_in_one_call(tmp_path):
    pairs = [("adamw", "adam"), ("lion", "lion"), ("adamw", "none"), ("adamw", "adam")]
    configs = [config(base=b, meta=m, seed=i, alpha0=1e-4) for i, (b, m) in enumerate(pairs)]
    for folders in zip(*both(configs, tmp_path), strict=True):
        assert_same_run(*folders)


def test_streams_of_different_lengths_end_one_after_another(tmp_path):
    lengths = [60, 100, 70]
    configs = [
        config(seed=i, stream_options={"tasks": 2, "steps_per_task": n})
        for i, n in enumerate(lengths)
    ]
    together, alone = both(configs, tmp_path)
    assert [len(trajectory(folder)) for folder in together] == [2 * n for n in lengths]
    for folders in zip(together, alone, strict=True):
        assert_same_run(*folders)


def test_batches_of_several_images_with_a_smaller_last_one(tmp_path):
    stream = {"tasks": 2, "batch_size": 32, "epochs": 1}
    configs = [config(seed=seed, stream_options=stream) for seed in (0, 1)]
    for folders in zip(*both(configs, tmp_path), strict=True):
        assert_same_run(*folders)


def test_a_convolutional_network_equals_single_runs(tmp_path):
    configs = [cnn(seed=seed, blocks=blocks) for seed, blocks in ((0, "scalar"), (1, "head"))]
    for folders in zip(*both(configs, tmp_path), strict=True):
        assert_same_run(*folders)


class Summing(Rule):
    """Not a formula of one number: in a batch it would mix the learners'."""

    def update(self, g, state, t):
        return g / (g.norm() + 1e-8), state


@pytest.mark.parametrize("level", ["base", "meta"])
def test_a_rule_that_sums_makes_runs_go_one_by_one_with_equal_results(level, tmp_path, monkeypatch):
    monkeypatch.setitem(BY_NAME._entries, "summing", Summing)
    configs = [config(**{level: "summing"}, seed=s, blocks="layer") for s in (0, 1)]
    with pytest.warns(ReplicaWarning, match=f"its {level} rule Summing uses .norm"):
        together, alone = both(configs, tmp_path)
    for folders in zip(together, alone, strict=True):
        assert_same_run(*folders, tolerance=0)


@pytest.mark.parametrize(
    ("base", "meta"),
    [
        ("adamw", "adam"),
        pytest.param("lion", "sgd", marks=compiling),
        pytest.param("sgdm", "none", marks=compiling),
    ],
)
def test_the_compiled_program_equals_single_runs(base, meta, tmp_path, monkeypatch):
    monkeypatch.setattr(_chunk, "WORTH_COMPILING", 0)
    monkeypatch.setattr("clmeta.engines.native.Native.step", lambda *args: False)
    configs = [
        config(base=base, meta=meta, alpha0=1e-4, seed=seed, blocks=blocks)
        for seed, blocks in ((0, "scalar"), (1, "head"))
    ]
    with warnings.catch_warnings():
        # torch's own, from its compiler's internals.
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        together, alone = both(configs, tmp_path)
    for folders in zip(together, alone, strict=True):
        assert_same_run(*folders)


def test_without_a_compiler_it_says_so_and_goes_on(tmp_path, monkeypatch):
    def broken(*args, **options):
        raise CannotCompile("no compiler here")

    monkeypatch.setattr(_chunk, "WORTH_COMPILING", 0)
    monkeypatch.setattr("clmeta.engines.native.Native.step", lambda *args: False)
    monkeypatch.setattr("shutil.which", lambda name: "/usr/bin/" + name)
    monkeypatch.setattr("clmeta.engines.compiled.Fused", broken)
    configs = [config(seed=0), config(seed=1)]
    with pytest.warns(ReplicaWarning, match="no compiler here"):
        together, alone = both(configs, tmp_path)
    for folders in zip(together, alone, strict=True):
        assert_same_run(*folders)
