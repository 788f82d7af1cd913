"""One table of cases for the laws of a step: rules x granularities x learners x gradients.

A `Case` is stepped by any engine and by `twin.Twin`; both are read in the same form. Another rule,
granularity or kind of gradient is one entry here, and every law then holds for it.
"""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass
from typing import Any

import torch
from optimizer_parts import NAMES, gradients, params_of
from optimizer_parts import SHAPES as PLAIN
from twin import Twins

from clmeta import MetaOptimize
from clmeta.engines.gradient import Outer
from clmeta.rules import SGD, Adam, Lion, RMSprop, Rule, SGDm
from clmeta.softlion import SoftLion

RULES = {
    "sgd": SGD(),
    "sgdm": SGDm(),
    "sgdm, stale": SGDm(rho=0.3, stale=True),
    "sgdm, accumulate": SGDm(accumulate=True),
    "sgdm, both": SGDm(accumulate=True, stale=True),
    "rmsprop": RMSprop(),
    "adam": Adam(),
    "adam, accumulate": Adam(accumulate=True),
    "lion": Lion(),
    "softlion": SoftLion(),
}
METAS: dict[str, Rule | None] = {"none": None, **RULES}
PAIRS = list(itertools.product(RULES, METAS))

#: The parameters of each block, within which units or weights may have step sizes of their own.
GRANULARITIES = {
    "scalar": [[0, 1, 2, 3]],
    "layer": [[0, 1], [2, 3]],
    "tensor": [[0], [1], [2], [3]],
    "node": [[0], [1], [2], [3]],
    "weight": [[0], [1], [2], [3]],
}
SHAPES = {"plain": PLAIN, "odd": [(3, 1), (), (2, 0), (1,)]}
#: Learners in one stack may form blocks of their own.
MIXED = ("scalar", "layer", "tensor")
#: Settings of each learner.
SETTINGS = (
    {"alpha0": 1e-2, "eta": 1e-2, "gamma": 0.9, "weight_decay": 0.1, "alpha_max": 1.05e-2},
    {"alpha0": 3e-3, "eta": 3e-2, "gamma": 1.0, "weight_decay": 0.0},
    {"alpha0": 2e-2, "eta": 2e-2, "gamma": 0.5, "weight_decay": 0.3}
    | {"alpha_min": 1.9e-2, "alpha_max": 2.05e-2},
)
#: Parameters without a gradient, step by step.
MISSED = ([3], [3], [1, 2], [], [0, 1], [2, 3], [0, 1, 2, 3], [0])


@dataclass(frozen=True)
class Case:
    """What is stepped.

    Attributes:
        base, meta: names in the tables of rules.
        granularity: a name in `GRANULARITIES`, or "mixed" for a stack of several.
        learners: how many, as a stack; 0 for a MetaOptimize, which is one by itself.
        kind: "dense" gradients, "partial" ones, which some parameters miss, "outer" ones, products
            of two vectors for the weights of linear layers, or "any" of these, taking turns.
        shapes: a name in `SHAPES`.
    """

    base: str = "adam"
    meta: str = "adam"
    granularity: str = "layer"
    learners: int = 0
    kind: str = "dense"
    dtype: torch.dtype = torch.float64
    shapes: str = "plain"
    steps: int = 12

    @property
    def rows(self) -> int:
        """Number of learners."""
        return max(self.learners, 1)

    def blocks(self, row: int) -> str:
        """How a learner forms its blocks."""
        return MIXED[row] if self.granularity == "mixed" else self.granularity

    @property
    def fine(self) -> bool:
        """Whether units or weights have step sizes of their own; fixed ones need none."""
        return self.granularity in ("node", "weight") and self.meta != "none"

    def optimizer(self, params, row: int = 0, engine: str = "auto", **options) -> MetaOptimize:
        """One learner's optimiser."""
        named = list(zip(NAMES, params, strict=True))
        rules = RULES[self.base], METAS[self.meta] or "none"
        how = {**SETTINGS[row], **options}
        return MetaOptimize(named, *rules, self.blocks(row), engine=engine, **how)

    def params(self, row: int = 0):
        """One learner's first weights."""
        return params_of(seed=row, dtype=self.dtype, shapes=SHAPES[self.shapes])

    def gradients(self):
        """For each step, for each parameter: None, a tensor (R, *shape) or an Outer."""
        return _gradients(self.kind, self.rows, self.dtype, self.shapes, self.steps)


@functools.cache
def _gradients(kind, rows, dtype, shapes, steps):
    how = {"dtype": dtype, "shapes": SHAPES[shapes]}
    each = [gradients(steps, seed=1 + 10 * row, **how) for row in range(rows)]
    found = []
    for k, mine in enumerate(zip(*each, strict=True)):
        stacked: list[Any] = [torch.stack(xs) for xs in zip(*mine, strict=True)]
        if kind == "outer" or (kind == "any" and k % 2):
            stacked = [Outer(g[:, :, :1], g[:, :1]) if g.dim() == 3 else g for g in stacked]
        if kind in ("partial", "any"):
            stacked = [None if i in MISSED[k % len(MISSED)] else g for i, g in enumerate(stacked)]
        found.append(stacked)
    return found


def dense(g):
    """A gradient as a tensor (R, *shape), if there is one."""
    return g.dense() if isinstance(g, Outer) else g


def twins(case: Case) -> Twins:
    """The case's learners, one number at a time, in double precision."""
    weights = [[p.detach().double() for p in case.params(row)] for row in range(case.rows)]
    blocks = [GRANULARITIES[case.blocks(row)] for row in range(case.rows)]
    settings = []
    for how in SETTINGS[: case.rows]:
        numbers = {name: how[name] for name in ("alpha0", "eta", "gamma")}
        wide = (1e-4, 1e2) if case.fine else (0, math.inf)
        low, high = (how["alpha0"] * x for x in wide)
        low, high = how.get("alpha_min", low), how.get("alpha_max", high)
        settings.append({**numbers, "kappa": how["weight_decay"], "low": low, "high": high})
    fine = case.granularity if case.fine else blocks
    return Twins(weights, fine, RULES[case.base], METAS[case.meta], settings)


@functools.cache
def expected(case: Case) -> dict[str, torch.Tensor]:
    """What the twins have come to after the case's steps."""
    made = twins(case)
    for grads in case.gradients():
        made.step(list(map(dense, grads)))
    return made.read()


def assert_alike(found, wanted, rtol=1e-12, atol=1e-14) -> None:
    """The same entries within rounding; what a twin does not have is not compared."""
    assert found.keys() == wanted.keys()
    for name, mine in found.items():
        theirs = wanted[name]
        mine = torch.where(theirs.isnan(), theirs, mine[:, : theirs.shape[1]])
        torch.testing.assert_close(
            mine, theirs, rtol=rtol, atol=atol, equal_nan=True, msg=lambda m, n=name: f"{n}: {m}"
        )
