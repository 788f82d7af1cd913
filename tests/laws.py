"""One table of cases for the laws of a step: rules x granularities x learners x gradients.

A `Case` is stepped by any engine and by `twin.Twin`; both are read in the same form. Another rule,
granularity or kind of gradient is one entry here, and every law then holds for it.
"""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from optimizer_parts import NAMES, feed, gradients, params_of
from optimizer_parts import SHAPES as PLAIN
from twin import Twins

from clmeta import MetaOptimize
from clmeta.blocks import fine_shape
from clmeta.engines.choose import engines_for
from clmeta.engines.gradient import Outer
from clmeta.engines.learners import trace_norms
from clmeta.replicas.stack import stack
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


# ---- stepped by an engine ----------------------------------------------------------------------


class Alone:
    """A MetaOptimize, which is one learner."""

    def __init__(self, case: Case, engine: str, **options) -> None:
        self.case, self.params = case, case.params()
        self.optimizer = case.optimizer(self.params, engine=engine, **options)

    def step(self, grads) -> None:
        """One update; gradients are in the form of a stack's."""
        feed(self.params, [None if g is None else dense(g)[0] for g in grads])
        self.optimizer.step()

    @property
    def sizes(self):
        """The step sizes of all learners."""
        return self.optimizer.sizes

    @property
    def names(self) -> list[list[str]]:
        """Each learner's blocks."""
        return [self.optimizer.block_names]

    def owner(self, row: int, i: int) -> int:
        """The block of a learner's tensor."""
        groups = self.optimizer.param_groups
        return next(b for b, g in enumerate(groups) for p in g["params"] if p is self.params[i])

    def tensors(self) -> list[torch.Tensor]:
        """Everything that a step changes."""
        states = [x for p in self.params for x in self.optimizer.state[p].values()]
        return [*self.params, *states, *self.sizes.tensors()]

    def readings(self) -> list[torch.Tensor]:
        """What is shown of the last step."""
        return [self.optimizer.alpha, self.optimizer.z, self.optimizer.trace_norm]

    def read(self) -> dict[str, torch.Tensor]:
        """Everything that a step changes, by name; see `_read`."""
        o, states = self.optimizer, [self.optimizer.state.get(p, {}) for p in self.params]

        def entry(name, of=()):
            like = of or [p.detach() for p in self.params]
            return [
                s.get(name, torch.zeros_like(x))[None] for s, x in zip(states, like, strict=True)
            ]

        first = [p.new_zeros(()) for p in self.params]
        fine = {}
        w = [p.detach()[None] for p in self.params]
        if self.case.fine and o.meta_rule:
            fine = {"alpha": [x.exp() for x in entry("beta")]}
            fine |= {name: entry("meta_" + name) for name in o.meta_rule.slots}
        elif self.case.fine:
            fine = _fixed(self.case, w, o.sizes)
        slots = {name: entry(name) for name in o.base_rule.slots}
        h = entry("h") if o.meta_rule else []
        return _read(w, h, slots, entry("step", first), fine, o.sizes, o.trace_norm[None])


class Stacked:
    """Learners as replicas stack them, stepped together."""

    def __init__(self, case: Case, engine: str, **options) -> None:
        self.case = case
        params = [case.params(row) for row in range(case.rows)]
        optimizers = [case.optimizer(ps, row, **options) for row, ps in enumerate(params)]
        weights = [torch.stack([p.detach() for p in ps]) for ps in zip(*params, strict=True)]
        self.learners = stack(optimizers, weights, params)
        self.names = [o.block_names for o in optimizers]
        s, w = self.learners, weights[0]
        self.engine = engines_for(engine, s.base, s.meta, s.granularity, w.device, w.dtype)[0]
        self._parts: dict[tuple[int, ...], Any] = {}

    def step(self, grads) -> None:
        """One update of the parameters that have gradients."""
        here = tuple(i for i, g in enumerate(grads) if g is not None)
        self.learners.sizes.calls += 1
        if here:
            made = self.engine.step(self._part(here), [grads[i] for i in here])
            assert made, self.engine.why_not
        else:
            self.learners.sizes.z.zero_()

    def _part(self, here):
        """The learners over some of their parameters; the same object for the same ones."""
        s = self.learners
        if len(here) == len(s.w):
            return s
        if here not in self._parts:
            block = s.block[:, list(here)]
            self._parts[here] = replace(
                s,
                w=[s.w[i] for i in here],
                h=[s.h[i] for i in here] if s.h else [],
                slots={name: [xs[i] for i in here] for name, xs in s.slots.items()},
                steps=[s.steps[i] for i in here],
                block=block,
                active=torch.zeros_like(s.active).scatter_(1, block, True),
                fine=[s.fine[i] for i in here] if s.fine else [],
                _complete=None,
            )
        return self._parts[here]

    @property
    def sizes(self):
        """The step sizes of all learners."""
        return self.learners.sizes

    def owner(self, row: int, i: int) -> int:
        """The block of a learner's tensor."""
        return int(self.learners.block[row, i])

    def tensors(self) -> list[torch.Tensor]:
        """Everything that a step changes."""
        return self.learners.tensors()

    def readings(self) -> list[torch.Tensor]:
        """What is shown of the last step."""
        return [self.sizes.alpha, self.sizes.z, self._norm()]

    def _norm(self) -> torch.Tensor:
        return trace_norms(self.learners.h, self.learners.block, self.sizes.beta.shape[1])

    def keep(self, rows) -> None:
        """Go on with some of the learners."""
        self.learners, self._parts = self.learners.keep(rows), {}
        self.names = [self.names[row] for row in rows]

    def read(self) -> dict[str, torch.Tensor]:
        """Everything that a step changes, by name; see `_read`."""
        s = self.learners
        fine = {}
        if self.case.fine and s.meta is None:
            fine = _fixed(self.case, s.w, s.sizes)
        elif s.fine:
            fine = {"alpha": [each["beta"].exp() for each in s.fine]}
            slots = s.meta.slots if s.meta else ()
            fine |= {name: [each[name] for each in s.fine] for name in slots}
        return _read(s.w, s.h, s.slots, s.steps, fine, s.sizes, self._norm())


def made(case: Case, engine: str, **options) -> Alone | Stacked:
    """The case's learners, to be stepped by an engine."""
    return (Stacked if case.learners else Alone)(case, engine, **options)


def _fixed(case, w, sizes) -> dict[str, list[torch.Tensor]]:
    """Fixed step sizes of units or weights: each has its tensor's."""
    shapes = [fine_shape(x[0], case.granularity) for x in w]
    return {
        "alpha": [
            sizes.alpha[:, i, None].expand(-1, math.prod(shape)) for i, shape in enumerate(shapes)
        ]
    }


def _read(w, h, slots, steps, fine, sizes, norm) -> dict[str, torch.Tensor]:
    """What `Twins.read` gives of the twins: (R, n) each, in double precision."""

    def flat(xs):
        return torch.cat([x.reshape(len(sizes), -1).double() for x in xs], 1)

    found = {"w": flat(w), "alpha": sizes.alpha.double(), "z": sizes.z.double()}
    found |= {"norm": norm.double(), "steps": flat(steps)}
    if h:
        found["h"] = flat(h)
    found |= {f"slot {name}": flat(xs) for name, xs in slots.items()}
    found |= {f"fine {name}": flat(xs) for name, xs in fine.items()}
    if not fine:
        found |= {f"meta {name}": x.double() for name, x in sizes.state.items()}
        found["meta t"] = sizes.t.double()
    return {name: x.clone() for name, x in found.items()}


# ---- stepped by the twin -----------------------------------------------------------------------


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
