"""A small run and what it recorded, for the tests of configs, runs and jobs."""

from __future__ import annotations

import dataclasses

import pandas as pd

from clmeta.runs.config import RunConfig

SMALL = RunConfig(
    stream="permuted_inputs",
    stream_options={"tasks": 2, "steps_per_task": 30},
    model="mlp",
    model_options={"hidden": 8},
    blocks="layer",
    alpha0=1e-3,
)


def trajectory(folder):
    return pd.read_parquet(folder / "trajectory")


def small(**changes):
    return dataclasses.replace(SMALL, **changes)
