"""A throw-away package with a thing for every registry."""

from __future__ import annotations

import sys

from clmeta.analysis import PLOTS
from clmeta.analysis.fidelity import MODES
from clmeta.blocks import BLOCKS
from clmeta.cli.reproduction import EXPERIMENTS
from clmeta.engines.choose import ENGINES
from clmeta.general.meta_parameters import MAPS
from clmeta.models import MODELS
from clmeta.rules import RULES
from clmeta.special import SPECIAL
from clmeta.strategies import STRATEGIES
from clmeta.streams import AUGMENTATIONS, DATASETS, STREAMS
from clmeta.sweep.metrics import METRICS
from clmeta.sweep.protocol import ROWS

THINGS = '''
from dataclasses import dataclass

import torch
from torch import nn

from clmeta.engines.eager import Eager
from clmeta.general.meta_parameters import Map
from clmeta.rules import Rule
from clmeta.strategies.entries import avalanche_strategy
from clmeta.streams import load_dataset, permuted_inputs
from clmeta.sweep.metrics import metric
from clmeta.sweep.protocol import Row

number = 3


@dataclass(frozen=True)
class Half(Rule):
    def update(self, g, state, t):
        return 0.5 * g, state


@dataclass(frozen=True)
class Scaled(Rule):
    by: float

    def update(self, g, state, t):
        return self.by * g, state


def net(input_shape, n_classes, width=4):
    return nn.Sequential(nn.Flatten(), nn.Linear(input_shape[0] * 64, n_classes))


def two_tasks(data, tasks=2, steps_per_task=10, **common):
    return permuted_inputs(data, tasks, steps_per_task=steps_per_task, **common)


def dark_digits(data_root, download):
    digits = load_dataset("digits")
    digits.x_train //= 2
    return digits


class Negative:
    def draw(self, n, generator):
        return torch.zeros(n, 0, dtype=torch.int64)

    def apply(self, images, draws):
        return 255 - images


negative = Negative()


def by_first_letter(names):
    return {"all of it": list(names)}


def loses_one(names):
    return {"rest": list(names)[1:]}


def plain(model, optimizer, stream, *, recorder=None, on_progress=None, evaluate=True, say=""):
    from clmeta.strategies import learn_online

    return learn_online(model, optimizer, stream, recorder=recorder, evaluate=evaluate)


@avalanche_strategy("outside", about="Entered when its module is imported.")
def outside():
    from clmeta.strategies.online import Online

    return Online, {}, []


def losses(runs, ax):
    ax.plot(runs["step"], runs["loss"])
    return ax


@metric("steps outside", share=False, higher=False)
def steps(folder):
    """Steps."""
    return float(folder.summary["steps"])


def half_accuracy(folder):
    return folder.summary["cumulative_accuracy"] / 2


squared = Map(lambda beta: beta**2, lambda value: value**0.5, low=0.0)
mode = {"approximation": "L", "hessian": "free"}
row = Row("Mine", "sgd", "adam", 1e-3, 1e-3, 0.0, (1e-3,))


def case(loss, params, **options):
    from clmeta.special import idbd

    return idbd(loss, params, **options)


class Counting(Eager):
    steps = 0

    def step(self, learners, grads):
        Counting.steps += 1
        return super().step(learners, grads)


def experiment(output, bases, seeds, **options):
    return None
'''

#: Each registry with a thing of its kind in the package above, and one that is not.
KINDS = [
    (RULES, "Half", "net"),
    (MODELS, "net", "number"),
    (STREAMS, "two_tasks", "net"),
    (DATASETS, "dark_digits", "number"),
    (AUGMENTATIONS, "negative", "Negative"),
    (BLOCKS, "by_first_letter", "row"),
    (STRATEGIES, "plain", "net"),
    (PLOTS, "losses", "number"),
    (METRICS, "half_accuracy", "mode"),
    (MAPS, "squared", "net"),
    (MODES, "mode", "row"),
    (ROWS, "row", "mode"),
    (SPECIAL, "case", "number"),
    (EXPERIMENTS, "experiment", "row"),
    (ENGINES, "Counting", "net"),
]
IDS = [registry.kind for registry, _, _ in KINDS]


def outside(tmp_path, monkeypatch):
    """A package of the user's own, found in the working folder; tests make it their fixture."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "__init__.py").write_text("")
    (tmp_path / "outside" / "things.py").write_text(THINGS)
    (tmp_path / "outside" / "broken.py").write_text("import clmeta\n\nclmeta.no_such_thing\n")
    (tmp_path / "outside" / "needs.py").write_text("import a_module_that_is_not_here\n")
    (tmp_path / "outside" / "script.py").write_text("import sys\n\nsys.exit(3)\n")
    (tmp_path / "outside" / "typo.py").write_text("def f(:\n")
    monkeypatch.chdir(tmp_path)
    registries = [registry for registry, _, _ in KINDS]
    before = [
        (r, dict(r._entries), dict(r._about), list(r._sources)) for r in registries
    ]  # what the package's decorators enter is taken out again
    yield tmp_path
    for registry, *tables in before:
        registry._entries, registry._about, registry._sources = tables
    for name in [name for name in sys.modules if name.partition(".")[0] == "outside"]:
        del sys.modules[name]
