"""Whether an optimiser moves in proportion to lr: tried on copies, before it is believed.

With fixed gradients, three copies of the freshly built optimiser go from the same small weights:
one with lr = alpha0, one with twice as much, one that doubles it on the way. The second must move
twice as far as the first, and the third must answer. Nothing of the user's is touched: weights,
gradients, random state, hooks.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

import torch
from torch.nn.parameter import is_lazy

from clmeta.errors import BadArgument, bad
from clmeta.wrapped.trial import Way, params_of, trial, uncopyable, undisturbed

#: Steps of a trial, and of one in which nothing moved by then; lr doubles in the middle.
STEPS = (8, 32)
#: Largest relative deviation from "twice as far".
TOLERANCE = 0.1
#: By how much a doubled lr must change the later movement, as a part of that movement.
ANSWERS = (0.05, 10.0)
#: Numbers up to which weights are copied whole, where small ones do not do.
WHOLE = 1_000_000
#: Curvature of the loss times lr: it must not show as a movement out of proportion.
CURVATURE = 1e-3
#: Smallest lr that rounding leaves exact, by the dtype of the copies.
SMALLEST = {torch.float64: 1e-6, torch.float32: 1e-4}


@dataclass(frozen=True)
class Verdict:
    """What a trial showed.

    Attributes:
        deviation: of twice the movement from the movement with twice the lr, relative.
        ratio: length of the movement with twice the lr, relative to that with lr.
        answer: change of the later movement by a doubled lr, relative to it.
        turned: whether all climb without ``maximize``, or descend with it.
    """

    deviation: float
    ratio: float
    answer: float
    turned: bool

    @property
    def proportional(self) -> bool:
        """Whether the movement goes by lr."""
        return self.deviation <= TOLERANCE and ANSWERS[0] <= self.answer <= ANSWERS[1]


def probe(inner: torch.optim.Optimizer, lrs: Sequence[float], name: str) -> bool:
    """Refuse an optimiser whose movement does not go by lr; warn where that cannot be tried.

    Args:
        inner: the optimiser, just built.
        lrs: first step size of each of its groups.
        name: what to call it.

    Returns:
        Whether it climbs without ``maximize``, or descends with it.

    Raises:
        BadArgument: if it has no step size to learn.
    """
    verdict: Verdict | None = None
    trouble = ""
    if all(map(is_lazy, params_of(inner))):  # nothing has a shape to be tried in
        return False
    for real in (True, False):
        found = _first(inner, lrs, real, name)
        if isinstance(found, Verdict):
            if found.proportional:
                return found.turned
            verdict = found
        else:
            trouble = trouble or found
    if verdict is not None:
        _refuse(verdict, max(lrs), name)
    warnings.warn(
        f"base={name!r}: whether it moves in proportion to lr could not be tried ({trouble}); "
        "if it does not, its step sizes mean nothing",
        stacklevel=2,
    )
    return False


def _refuse(verdict: Verdict, lr: float, name: str) -> NoReturn:
    if verdict.deviation > TOLERANCE:
        shown = f"twice lr={lr:g} moves {verdict.ratio:.3g} times as far"
    elif verdict.answer < ANSWERS[0]:
        shown = "a later lr does not change its steps: lr is only their start"
    else:
        shown = f"a doubled lr changes its next steps {verdict.answer:.3g}-fold"
    mend = "use one that moves by lr times a direction, such as torch.optim.AdamW, or meta='none'"
    bad("base", name, f"has no step size to learn, as {shown}; {mend}")


def _first(
    inner: torch.optim.Optimizer, lrs: Sequence[float], real: bool, name: str
) -> Verdict | str:
    """The verdict by the first way that works, or why none does."""
    trouble = uncopyable(inner)
    if trouble:
        return trouble
    few = sum(p.numel() for p in params_of(inner) if not is_lazy(p)) <= WHOLE
    kinds = ("plain", "closure", "sparse", "graph")
    for whole, dtype, kind in itertools.product((False, True)[: 1 + few], SMALLEST, kinds):
        way = Way(real, whole, dtype, kind, CURVATURE / (2 * max(lrs)), name)
        try:
            with undisturbed():
                for steps in STEPS:
                    verdict = compare(inner, lrs, way, steps)
                    if verdict is not None:
                        return verdict
            return f"nothing moved in {STEPS[-1]} steps"
        except BadArgument:
            raise
        except Exception as error:
            line = (str(error).strip().splitlines() or [""])[0]
            trouble = trouble or f"{type(error).__name__}: {line}"
    return trouble


def compare(
    inner: torch.optim.Optimizer, lrs: Sequence[float], way: Way, steps: int
) -> Verdict | None:
    """Three trials beside each other; None if nothing moved, or not to finite numbers."""
    low = [max(lr, SMALLEST[way.dtype]) for lr in lrs]
    high, half = [2 * lr for lr in low], steps // 2
    once, turned = trial(inner, [low] * steps, way)
    twice, _ = trial(inner, [high] * steps, way)
    later, _ = trial(inner, [low] * half + [high] * (steps - half), way)
    found: list[Verdict] = []
    for a, b, c in zip(once, twice, later, strict=True):  # (steps, numbers) of one parameter
        length = a.norm(dim=1).max().item()
        finite = a.isfinite().all() and b.isfinite().all() and c.isfinite().all()
        if not finite or not (a.any() or b.any()):
            continue
        deviation = (b - 2 * a).norm(dim=1).max().item() / (2 * length) if length else math.inf
        end = a[-1].norm().item()
        moved = (a[-1] - a[half - 1]).norm().item()
        answer = (c[-1] - a[-1]).norm().item() / moved if moved else 1.0
        ratio = b[-1].norm().item() / end if end else math.inf
        found.append(Verdict(deviation, ratio, answer, turned))
    return max(found, key=lambda each: (not each.proportional, each.deviation), default=None)
