"""Functions and constructors of all rooms, to be called with anything."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bad_input_parts import values
from hypothesis import strategies as st
from torch.nn import functional as F

from clmeta import GeneralMetaOptimize, Hessian, MetaOptimize, Recorder
from clmeta.analysis import boundary_windows, load_runs, melt_alphas, save_plots, summary_table
from clmeta.autostep import Autostep
from clmeta.models import make_model
from clmeta.record.find import find_runs
from clmeta.replicas import learners_at_a_time, run_replicas
from clmeta.runs.config import OPTIONS, RunConfig
from clmeta.runs.parse import parse_seeds
from clmeta.runs.runner import run
from clmeta.streams import ArrayData, load_dataset, make_stream, permuted_inputs
from clmeta.sweep import LocalLauncher, SweepSpec, run_sweep
from clmeta.sweep.best import best
from clmeta.sweep.cluster import ClusterLauncher, minutes

SMALL = {"tasks": 1, "steps_per_task": 3}
DIGITS = load_dataset("digits")
CONFIG = RunConfig(stream_options=SMALL, model="linear", evaluate=False)
WEIGHTS = {"w": torch.zeros(3, 2)}
IMAGES, LABELS = np.zeros((10, 4, 4), np.uint8), np.arange(10) % 2


def _loss(params: Mapping[str, Any], x: Any, y: Any) -> Any:
    return F.cross_entropy(x @ params["w"], y)


def _optimizer(**given: Any) -> None:
    MetaOptimize(torch.nn.Linear(3, 2).named_parameters(), **given)


def _recorder(at: Path, folder: Any = "recorded", optimizer: Any = ("a",), **given: Any) -> None:
    Recorder(folder, optimizer, **{"overwrite": True, **given}).close()


def _or_none(value: Any) -> Any:
    return {} if isinstance(value, tuple) else value


#: Name to a function of the folder with a finished sweep and of keywords, and the keywords' names.
CALLS: dict[str, tuple[Callable[..., Any], list[str]]] = {
    "RunConfig": (lambda at, **given: RunConfig(**given), list(OPTIONS)),
    "RunConfig.from_dict": (
        lambda at, options: RunConfig.from_dict(options),
        ["options"],
    ),
    "RunConfig.from_json": (lambda at, text="{}": RunConfig.from_json(text), ["text"]),
    "RunConfig.from_file": (lambda at, path="done": RunConfig.from_file(path), ["path"]),
    "SweepSpec": (
        lambda at, **given: SweepSpec(**given).configs(),
        ["options", "grid", "methods", "seeds"],
    ),
    "SweepSpec.changed": (
        lambda at, options=(), grid=(), seeds=None: (
            SweepSpec().changed(_or_none(options), _or_none(grid), seeds).configs()
        ),
        ["options", "grid", "seeds"],
    ),
    "parse_seeds": (lambda at, text="0": parse_seeds("seeds", text), ["text"]),
    "MetaOptimize": (
        lambda at, **given: _optimizer(**given),
        [
            *("base", "meta", "blocks", "alpha0", "eta", "gamma", "weight_decay", "alpha_min"),
            *("alpha_max", "nonfinite", "hessian", "approximation", "engine", "lr"),
        ],
    ),
    "Hessian": (lambda at, kind="exact": Hessian(kind), ["kind"]),
    "Recorder": (
        _recorder,
        ["folder", "optimizer", "config", "part_steps"],
    ),
    "run": (
        lambda at, config=CONFIG, folder="done", data=None: run(config, folder, data=data),
        ["config", "folder", "data"],
    ),
    "run_sweep": (
        lambda at, configs=(CONFIG,), output="sweep", **given: run_sweep(configs, output, **given),
        ["configs", "output", "chunk", "launcher"],
    ),
    "run_replicas": (
        lambda at, configs=(CONFIG,), folders=("done",), chunk=None: run_replicas(
            configs, folders, chunk=chunk
        ),
        ["configs", "folders", "chunk"],
    ),
    "learners_at_a_time": (
        lambda at, configs=(CONFIG,), **given: learners_at_a_time(configs, **given),
        ["configs", "chunk", "processes"],
    ),
    "LocalLauncher": (lambda at, processes=1: LocalLauncher(processes), ["processes"]),
    "ClusterLauncher": (
        lambda at, output=Path("x"), options=None: ClusterLauncher(
            output, options, cluster="local"
        ),
        ["output", "options"],
    ),
    "minutes": (lambda at, text=1: minutes(text), ["text"]),
    "best": (
        lambda at, folders="sweep", **given: best(folders, **given),
        ["folders", "option", "metric", "where", "tune_seeds", "report_seeds", "level"],
    ),
    "find_runs": (lambda at, folders="done": find_runs(folders), ["folders"]),
    "load_runs": (
        lambda at, folders="done", **given: load_runs(folders, **given),
        ["folders", "every", "columns", "blocks", "unfinished", "ignore"],
    ),
    "melt_alphas": (
        lambda at, runs=None, **given: melt_alphas(load_runs(at / "done"), **given),
        ["blocks", "every"],
    ),
    "boundary_windows": (
        lambda at, **given: boundary_windows(load_runs(at / "done"), **given),
        ["before", "after"],
    ),
    "summary_table": (
        lambda at, **given: summary_table(load_runs(at / "done"), **given),
        ["baseline", "level"],
    ),
    "save_plots": (
        lambda at, folder="figures", names=(), **given: save_plots(
            load_runs(at / "done"), folder, names=names, **given
        ),
        ["folder", "formats", "names"],
    ),
    "make_model": (
        lambda at, name="mlp", input_shape=(1, 4, 4), n_classes=2, **given: make_model(
            name, input_shape, n_classes, **given
        ),
        ["name", "input_shape", "n_classes", "options", "seed"],
    ),
    "make_stream": (
        lambda at, which="permuted_inputs", of=DIGITS, **given: make_stream(which, of, **given),
        [
            *("which", "of", "tasks", "seed", "batch_size", "epochs", "steps_per_task", "repeats"),
            *("augment", "device", "name", "data"),
        ],
    ),
    "abrupt_classes": (
        lambda at, **given: make_stream("abrupt_classes", DIGITS, **given),
        ["tasks", "classes_per_task", "head", "seed"],
    ),
    "task_batches": (
        lambda at, task=0: next(permuted_inputs(DIGITS).task_batches(task)),
        ["task"],
    ),
    "load_dataset": (
        lambda at, dataset="digits", **given: load_dataset(dataset, **{"download": False, **given}),
        ["dataset", "data_root", "download", "image_size"],
    ),
    "ArrayData": (
        lambda at, **given: ArrayData(
            **{"x_train": IMAGES, "y_train": LABELS, "x_test": IMAGES, "y_test": LABELS, **given}
        ),
        ["x_train", "y_train", "x_test", "y_test", "name"],
    ),
    "ArrayData.to": (lambda at, device="cpu": DIGITS.to(device), ["device"]),
    "GeneralMetaOptimize": (
        lambda at, loss=_loss, params=WEIGHTS, **given: GeneralMetaOptimize(loss, params, **given),
        [
            *("loss", "params", "base", "meta", "approximation", "hessian", "alpha0", "eta"),
            *("gamma", "seed", "chunk", "diagonal_samples"),
        ],
    ),
    "Autostep": (
        lambda at, **given: Autostep(_loss, WEIGHTS, **given),
        ["alpha0", "mu", "tau", "seed", "diagonal_samples"],
    ),
}


@st.composite
def calls(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    """The name of a call, and one or two of its arguments, which may be anything."""
    name = draw(st.sampled_from(sorted(CALLS)))
    given = draw(st.dictionaries(st.sampled_from(CALLS[name][1]), values, min_size=1, max_size=2))
    return name, given
