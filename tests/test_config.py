"""The config of a run: a value, checked as it is made."""

from __future__ import annotations

import dataclasses

import pytest
from runner_parts import SMALL, small

from clmeta.errors import BadArgument
from clmeta.runs.config import RunConfig


@pytest.mark.parametrize(
    ("option", "value", "mend"),
    [
        ("gamma", 1.01, "discount"),
        ("gamma", -0.1, "discount"),
        ("alpha0", 0.0, "above 0"),
        ("alpha0", float("nan"), "finite"),
        ("alpha0", "1e-4", "number"),
        ("eta", -1e-3, "negative"),
        ("weight_decay", -1.0, "negative"),
        ("seed", -1, "seed"),
        ("seed", 1.5, "whole"),
        ("threads", 0, "at least 1"),
        ("nonfinite", "ignore", "skip"),
        ("stream", "", "must not be empty"),
        ("stream", 3, "text"),
        ("download", "yes", "true or false"),
        ("model_options", [1], "mapping"),
        ("model_options", {"f": float("inf")}, "finite"),
        ("alpha_max", 1e-9, "alpha_max"),
    ],
)
def test_impossible_values_are_refused_at_once(option, value, mend):
    with pytest.raises(BadArgument, match=mend):
        small(**{option: value})


def test_a_config_is_a_value():
    options = {"tasks": 3}
    config = small(stream_options=options)
    options["tasks"] = 4
    assert config.stream_options == {"tasks": 3}
    assert config == small(stream_options={"tasks": 3})
    assert len({config, small(stream_options={"tasks": 3}), SMALL}) == 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.seed = 4  # type: ignore[misc]


def test_keys_tell_apart_what_is_computed_and_nothing_else():
    assert SMALL.key() == small(data_root="elsewhere", threads=2, name="mine").key()
    assert SMALL.key() != small(seed=1).key()
    assert SMALL.key(without=("seed",)) == small(seed=1).key(without=("seed",))
    assert SMALL.key() != small(model_options={"hidden": 9}).key()


def test_unknown_options_and_broken_files_are_named(tmp_path):
    with pytest.raises(BadArgument, match="alpha=1: unknown option; did you mean 'alpha0'"):
        RunConfig.from_dict({"alpha": 1})
    with pytest.raises(BadArgument, match="not JSON"):
        RunConfig.from_json("{")
    with pytest.raises(BadArgument, match="JSON object"):
        RunConfig.from_json("[]")
    with pytest.raises(BadArgument, match=r"this folder holds no config.json; give a run's folder"):
        RunConfig.from_file(tmp_path)
    (tmp_path / "config.json").write_bytes(b"\xff\xfe")
    with pytest.raises(BadArgument, match="not a text file"):
        RunConfig.from_file(tmp_path)
