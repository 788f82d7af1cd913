"""`Eager`'s text as one program by ``torch.compile``: each array read once and written once.

Step sizes, settings and counts enter as tensors, so nothing is compiled again as they change.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from clmeta.engines.eager import Eager
from clmeta.engines.fuse import CannotCompile, Fused
from clmeta.engines.gradient import Gradient, Outer
from clmeta.engines.learners import Learners, Numbers
from clmeta.engines.pieces import Plan
from clmeta.native.trace import may_change

#: Numbers of the blocks, whose functions are computed apart; and all else that a step changes.
SCALARS = ("alpha", "t")
OTHERS = ("beta", "z", "culprits", "calls", "withheld", "first")


class Compiled(Eager):
    """Steps of all blocks by a program for each form of arrays and gradients."""

    def __init__(self) -> None:
        super().__init__(masked=True)
        self._programs: dict[Any, Fused] = {}
        self._forms: tuple[Plan, Any, list[Tensor], list[Tensor], dict[Any, Fused]] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_programs": {}, "_forms": None}

    def step(self, learners: Learners, grads: Sequence[Gradient]) -> bool:
        """One update of all learners; False, with ``why_not``, where there is no compiler."""
        if learners.shards is not None:
            self.why_not = "weights are sharded over processes"
            return False
        try:
            return super().step(learners, grads)
        except CannotCompile as error:
            self.why_not = f"torch.compile: {error}"
            return False

    def advance(self, plan: Plan, grads: Sequence[Gradient]) -> None:
        """The whole step by the program for arrays like these."""
        s = plan.learners
        if self._forms is None or self._forms[0] is not plan:
            if any(may_change(rule) for rule in (s.base, s.meta) if rule is not None):
                raise CannotCompile("its rules' attributes may change")
            rest = (s.base, s.meta, s.granularity, tuple(s.block.flatten().tolist()))
            arrays = [*_arrays(s)]
            self._forms = plan, (rest, tuple(map(_form, arrays))), [*_scalars(s)], arrays, {}
        _, form, scalars, arrays, programs = self._forms
        kinds, parts = [isinstance(g, Outer) for g in grads], [*_parts(grads)]
        own = (*kinds, *map(_form, parts))
        arrays = [*arrays, *parts]
        if own not in programs and (form, own) not in self._programs:

            def program(*flat: Tensor) -> list[Tensor]:
                given = iter(flat)
                mine = _rebuilt(s, given)
                grads = [
                    Outer(next(given), next(given)) if outer else next(given) for outer in kinds
                ]
                super(Compiled, self).advance(Plan(mine, masked=True), grads)
                return []

            self._programs[form, own] = Fused(program, scalars, arrays)
        if own not in programs:
            programs[own] = self._programs[form, own]
        with torch.no_grad():
            programs[own](scalars, arrays)


def _form(x: Tensor) -> tuple[Any, ...]:
    return x.shape, x.stride(), x.dtype, x.device


def _scalars(s: Learners) -> Iterator[Tensor]:
    yield from (getattr(s.sizes, name) for name in SCALARS)
    yield from (*s.numbers, *s.steps)


def _arrays(s: Learners) -> Iterator[Tensor]:
    yield from (getattr(s.sizes, name) for name in OTHERS)
    yield from (*s.sizes.state.values(), *s.w, *s.h)
    yield from (x for xs in s.slots.values() for x in xs)
    yield from (x for each in s.fine for x in each.values())


def _parts(grads: Sequence[Gradient]) -> Iterator[Tensor]:
    for g in grads:
        yield from (g.a, g.b) if isinstance(g, Outer) else (g.detach(),)


def _rebuilt(s: Learners, given: Iterator[Tensor]) -> Learners:
    """The learners over other tensors, in the order of `_scalars` and `_arrays`."""
    sizes = copy.copy(s.sizes)

    def take(xs: Sequence[Tensor]) -> list[Tensor]:
        return [next(given) for _ in xs]

    for name in SCALARS:
        setattr(sizes, name, next(given))
    numbers, steps = Numbers(*take(s.numbers)), take(s.steps)
    for name in OTHERS:
        setattr(sizes, name, next(given))
    sizes.state = {name: next(given) for name in sizes.state}
    w, h = take(s.w), take(s.h)
    return dataclasses.replace(
        s,
        sizes=sizes,
        numbers=numbers,
        steps=steps,
        w=w,
        h=h,
        slots={name: take(xs) for name, xs in s.slots.items()},
        fine=[{name: next(given) for name in each} for each in s.fine],
    )
