"""Learners of a `laws.Case`, stepped by an engine and read as its twins are."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from laws import Case, dense
from optimizer_parts import feed

from clmeta.blocks import fine_shape
from clmeta.engines.choose import engines_for
from clmeta.engines.learners import trace_norms
from clmeta.replicas.stack import stack


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
