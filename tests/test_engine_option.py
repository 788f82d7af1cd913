"""The engine as an option of a run: alone, in a batch, from old files, by a path of one's own."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from clmeta.analysis import load_runs
from clmeta.engines.eager import Eager
from clmeta.errors import BadArgument
from clmeta.replicas import run_replicas
from clmeta.replicas.together import together
from clmeta.runs.config import RunConfig
from clmeta.runs.prepared import prepare
from clmeta.runs.runner import run

SMALL = {
    "stream_options": {"tasks": 1, "steps_per_task": 12},
    "model_options": {"hidden": 4},
    "evaluate": False,
}
COUNTED: Counter[str] = Counter()


class Counting(Eager):
    """Counts its steps."""

    def step(self, learners, grads):
        COUNTED["steps"] += 1
        return super().step(learners, grads)


HERE = f"{__name__}:Counting"


@pytest.mark.parametrize("together", [False, True], ids=["alone", "replicas"])
def test_the_chosen_engine_makes_the_steps(tmp_path, together):
    configs = [RunConfig(**SMALL, engine=HERE, seed=seed) for seed in (0, 1)]
    folders = [tmp_path / "a", tmp_path / "b"]
    COUNTED.clear()
    if together:
        run_replicas(configs, folders)
    else:
        for config, folder in zip(configs, folders, strict=True):
            run(config, folder)
    assert COUNTED["steps"] == (12 if together else 24)
    assert json.loads((tmp_path / "a" / "config.json").read_text())["engine"] == HERE


def test_engines_round_differently_and_learn_the_same(tmp_path):
    frames = []
    for engine in ("eager", "auto"):
        run(RunConfig(**SMALL, engine=engine), tmp_path / engine)
        frames.append(load_runs(tmp_path / engine))
    assert frames[0]["loss"].to_numpy() == pytest.approx(frames[1]["loss"].to_numpy(), rel=1e-4)


def test_it_changes_no_name_but_keeps_runs_apart_that_train_together():
    auto, eager = RunConfig(), RunConfig(engine="eager")
    assert auto.key() == eager.key() and auto.method == eager.method
    assert together(auto) != together(eager)
    old = {name: value for name, value in auto.to_dict().items() if name != "engine"}
    assert RunConfig.from_dict(old) == auto


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "nativ"}, "engine='nativ': unknown engine; did you mean 'native'"),
        ({"engine": "json:loads"}, "engine='json:loads': is the function loads"),
        ({"engine": "eager", "base": "torch.optim:SGD"}, "engine='eager': this optimiser wraps"),
        ({"engine": "eager", "hessian": "exact"}, "engine='eager': this optimiser needs second"),
    ],
)
def test_one_that_cannot_be_had_says_why(tmp_path, options, message):
    for use in (prepare, lambda config: run_replicas([config, config], [tmp_path / "a", tmp_path])):
        with pytest.raises(BadArgument, match=message):
            use(RunConfig(**SMALL, **options))
    assert not any(tmp_path.iterdir())
