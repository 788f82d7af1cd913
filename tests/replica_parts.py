"""Runs for the tests of replicas, made together and one by one."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from clmeta.replicas.run import run_replicas
from clmeta.runs.config import RunConfig
from clmeta.runs.runner import run

STREAM = {"tasks": 2, "steps_per_task": 100}


def config(**options):
    """200 steps of a small network on the digits that scikit-learn ships."""
    pytest.importorskip("sklearn")
    small = {"stream_options": STREAM, "model_options": {"hidden": 16}, "alpha0": 1e-3}
    return RunConfig(**{"weight_decay": 0.01, "eta": 1e-2, "gamma": 0.99, **small, **options})


def cnn(**options):
    """The same for a small CNN."""
    small = {"channels": [4, 6], "hidden": 12}
    return config(**{"model": "cnn", "model_options": small, "alpha0": 1e-4, **options})


def trajectory(folder):
    return pd.read_parquet(folder / "trajectory")


def assert_same_run(together, alone, tolerance=1e-4):
    """Same rows, same data, step sizes within a relative tolerance, same totals."""
    a, b = trajectory(together), trajectory(alone)
    assert list(a.columns) == list(b.columns)
    assert list(a.dtypes) == list(b.dtypes)
    assert a["step"].equals(b["step"])
    assert a["task"].equals(b["task"])
    alphas = [name for name in a if name.startswith("alpha.")]
    np.testing.assert_allclose(a[alphas], b[alphas], rtol=tolerance)
    np.testing.assert_allclose(a["loss"], b["loss"], rtol=1e-3, atol=1e-4)
    tasks = [pd.read_parquet(folder / "tasks.parquet") for folder in (together, alone)]
    pd.testing.assert_frame_equal(*tasks, atol=0.011)
    summaries = [json.loads((f / "summary.json").read_text()) for f in (together, alone)]
    assert list(summaries[0]) == list(summaries[1])
    configs = [json.loads((f / "config.json").read_text()) for f in (together, alone)]
    configs[0]["resolved"].pop("together", None)
    assert configs[0] == configs[1]


def both(configs, tmp_path):
    """Folders of the runs made together and one by one."""
    together = [tmp_path / f"together-{i}" for i in range(len(configs))]
    alone = [tmp_path / f"alone-{i}" for i in range(len(configs))]
    assert run_replicas(configs, together) == together
    for each, folder in zip(configs, alone, strict=True):
        run(each, folder)
    return together, alone
