"""Whole numbers, numbers and names, in the forms in which people have them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from clmeta import GeneralMetaOptimize, Recorder
from clmeta.analysis import boundary_windows, load_runs, melt_alphas, save_plots
from clmeta.analysis.fidelity import fidelity
from clmeta.autostep import Autostep
from clmeta.errors import BadArgument
from clmeta.ground.checks import listed, number, whole
from clmeta.ground.seeds import check_seed, derive_seed
from clmeta.lookup import check_options
from clmeta.models import make_model
from clmeta.replicas import learners_at_a_time, run_replicas
from clmeta.runs.config import RunConfig
from clmeta.runs.runner import run
from clmeta.streams import abrupt_classes, load_dataset, permuted_inputs
from clmeta.sweep import LocalLauncher, run_sweep

DIGITS = load_dataset("digits")
SMALL = {"tasks": 2, "steps_per_task": 10}


def loss(params, x, y):
    return F.cross_entropy(x @ params["w"], y)


WEIGHTS = {"w": torch.zeros(3, 2)}
BATCH = (torch.ones(1, 3), torch.tensor([1]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    run(RunConfig(stream_options=SMALL), folder / "one")
    return folder


def general(**options):
    GeneralMetaOptimize(loss, WEIGHTS, hessian="diagonal", **options).step(*BATCH)


def autostep(**options):
    Autostep(loss, WEIGHTS, **options).step(*BATCH)


def study(**options):
    fidelity(loss, WEIGHTS, [BATCH] * 6, modes=["L/free"], forward="frozen", **options)


def recorder(folder, **options):
    with Recorder(folder / "recorded", ["a"], overwrite=True, **options) as kept:
        kept.record(0, 1.0, 1.0, 0.1)


#: Every whole number that Python code may be given: its name, a good value, and where it goes.
WHOLE = {
    "model seed": ("seed", 3, lambda v, _: make_model("mlp", (1, 8, 8), 10, seed=v)),
    "model classes": ("n_classes", 3, lambda v, _: make_model("mlp", (1, 8, 8), v)),
    "model shape": ("input_shape", 8, lambda v, _: make_model("cnn", (1, 8, v), 10)),
    "model hidden": ("hidden", 4, lambda v, _: make_model("mlp", (1, 8, 8), 10, {"hidden": v})),
    "model layers": ("hidden", 4, lambda v, _: make_model("mlp", (1, 8, 8), 10, {"hidden": [v]})),
    "stream seed": ("seed", 3, lambda v, _: permuted_inputs(DIGITS, seed=v)),
    "stream tasks": ("tasks", 3, lambda v, _: permuted_inputs(DIGITS, v)),
    "stream batch": ("batch_size", 3, lambda v, _: permuted_inputs(DIGITS, batch_size=v)),
    "stream epochs": ("epochs", 3, lambda v, _: permuted_inputs(DIGITS, epochs=v)),
    "stream steps": ("steps_per_task", 3, lambda v, _: permuted_inputs(DIGITS, steps_per_task=v)),
    "stream repeats": ("repeats", 3, lambda v, _: permuted_inputs(DIGITS, repeats=v)),
    "stream classes": ("classes_per_task", 2, lambda v, _: abrupt_classes(DIGITS, 2, v)),
    "stream task": ("task", 1, lambda v, _: next(permuted_inputs(DIGITS).task_batches(v))),
    "config seed": ("seed", 3, lambda v, _: RunConfig(seed=v)),
    "config threads": ("threads", 3, lambda v, _: RunConfig(threads=v)),
    "part": ("part_steps", 3, lambda v, folder: recorder(folder, part_steps=v)),
    "load every": ("every", 3, lambda v, folder: load_runs(folder / "one", every=v)),
    "melt every": ("every", 3, lambda v, folder: melt_alphas(load_runs(folder / "one"), every=v)),
    "before": ("before", 3, lambda v, folder: boundary_windows(load_runs(folder / "one"), v)),
    "after": ("after", 3, lambda v, folder: boundary_windows(load_runs(folder / "one"), after=v)),
    "general seed": ("seed", 3, lambda v, _: general(diagonal_samples=1, seed=v)),
    "general samples": ("diagonal_samples", 2, lambda v, _: general(diagonal_samples=v)),
    "general chunk": ("chunk", 2, lambda v, _: general(chunk=v)),
    "autostep seed": ("seed", 3, lambda v, _: autostep(seed=v)),
    "autostep samples": ("diagonal_samples", 2, lambda v, _: autostep(diagonal_samples=v)),
    "processes": ("processes", 2, lambda v, _: LocalLauncher(v)),
    "learners": ("chunk", 2, lambda v, _: learners_at_a_time([RunConfig()], chunk=v)),
    "at a time": ("processes", 2, lambda v, _: learners_at_a_time([RunConfig()], processes=v)),
    "horizon": ("horizon", 2, lambda v, _: study(horizon=v)),
}


@pytest.mark.parametrize("where", WHOLE)
@pytest.mark.parametrize("kind", [int, np.int64, np.int32, np.uint8, torch.tensor])
def test_a_whole_number_is_taken_in_every_form(where, kind, folder):
    _, value, use = WHOLE[where]
    use(kind(value), folder)


@pytest.mark.parametrize("where", WHOLE)
@pytest.mark.parametrize("value", [-1, 1.5, "2", True, np.float64(2.0)])
def test_what_is_no_whole_number_of_the_kind_is_named(where, value, folder):
    argument, _, use = WHOLE[where]
    with pytest.raises(BadArgument, match=f"^{argument}="):
        use(value, folder)


def test_numbers_of_numpy_make_the_same_stream_config_and_record():
    plain = permuted_inputs(DIGITS, 3, seed=1, steps_per_task=5).describe()
    numpy = permuted_inputs(DIGITS, np.int64(3), seed=np.int64(1), steps_per_task=np.int16(5))
    assert repr(plain) == repr(numpy.describe())
    config = RunConfig(
        seed=np.int64(3), alpha0=np.float32(0.5), stream_options={"tasks": np.int64(2)}
    )
    assert config == RunConfig(seed=3, alpha0=0.5, stream_options={"tasks": 2})
    assert type(config.seed) is int and type(config.alpha0) is float


def test_options_of_numpy_are_of_their_kind():
    def function(count: int = 1, share: float = 0.5, both: bool = False) -> None: ...

    check_options(function, {"count": np.int64(2), "share": np.float32(0.25)}, "option")
    check_options(function, {"share": np.int64(1), "both": True}, "option")
    for name, value in {"count": 1.5, "share": "half", "both": 1}.items():
        with pytest.raises(BadArgument, match=f"option {name}="):
            check_options(function, {name: value}, "option")


@pytest.mark.parametrize("do", [run_sweep, lambda c, f, **more: run_replicas(c, [f], **more)])
def test_what_is_wrong_is_found_before_anything_is_made(do, tmp_path):
    config = RunConfig(stream_options=SMALL)
    for wrong in ("x", 0, 1.5, 10**20, [1]):
        with pytest.raises(BadArgument, match=r"^chunk="):
            do([config], tmp_path / "out", chunk=wrong)
    for configs in ([], [{}], config, None, "x"):
        with pytest.raises(BadArgument, match=r"^configs="):
            do(configs, tmp_path / "out")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("where", WHOLE)
def test_a_whole_number_of_any_size_is_a_number_or_refused(where, folder):
    argument, _, use = WHOLE[where]
    for huge in (2**63, 10**400):
        with pytest.raises(BadArgument, match=f"^{argument}="):
            use(huge, folder)


@pytest.mark.parametrize("seed", [2**63, 10**30])
def test_a_seed_too_large_is_refused_wherever_it_is_given(seed):
    for use in (check_seed, lambda s: permuted_inputs(DIGITS, seed=s), lambda s: RunConfig(seed=s)):
        with pytest.raises(BadArgument, match=r"seed=\d+: must lie in \[0, 2\^63\)"):
            use(seed)
    assert check_seed(2**63 - 1) == 2**63 - 1


def test_seeds_of_different_purposes_and_places_differ():
    seeds = {
        derive_seed(seed, purpose, *place)
        for seed in range(20)
        for purpose in ("order", "augment")
        for place in [(), (0,), (1,), (0, 1), (1, 0)]
    }
    assert len(seeds) == 200 and min(seeds) >= 0 and max(seeds) < 2**63


def test_the_checks_themselves():
    assert type(whole("n", np.int8(3))) is int and type(number("x", np.float32(3))) is float
    assert listed("names", "one") == ["one"] and listed("names", ("a", "b")) == ["a", "b"]
    for wrong in (lambda: whole("n", None), lambda: number("n", "1"), lambda: listed("n", 3)):
        with pytest.raises(BadArgument, match=r"^n="):
            wrong()


def test_one_name_stands_for_a_list_of_one(folder, tmp_path):
    runs = load_runs(folder / "one", columns="correct", blocks="all", ignore="eta")
    assert "loss" not in runs and "alpha.all" in runs
    assert len(melt_alphas(runs, blocks="all")) == 20
    (figure,) = save_plots(runs, tmp_path, formats="png", names="trajectories")
    assert figure.name == "trajectories.png"


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        ([["a", "b"]], r"folders=\['a', 'b'\]: give each folder.* as an argument of its own"),
        ([3], "folders=3: give each folder"),
        ([None], "folders=None: give each folder"),
        ([], r"folders=\[\]: name at least one"),
    ],
)
def test_folders_are_arguments_of_their_own(folders, message):
    with pytest.raises(BadArgument, match=message):
        load_runs(*folders)
