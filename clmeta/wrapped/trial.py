"""Steps of a copy of an optimiser, from small weights by fixed gradients, that disturb nothing."""

from __future__ import annotations

import contextlib
import copy
import random
import sys
import types
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from clmeta.errors import bad
from clmeta.wrapped.building import check_state, settings_of
from clmeta.wrapped.inner import GlobalHooks
from clmeta.wrapped.whole import Whole, nested

#: Longest side of a small weight; how many weights of one kind and setting are moved.
SIDE, ALIKE = 4, 2


@dataclass(frozen=True)
class Way:
    """One way to try an optimiser; those that it cannot do raise.

    Attributes:
        real: start from the model's weights, not from random ones.
        whole: keep their shapes.
        dtype: of the copies.
        gradients: ``"plain"``, ``"sparse"``, or of a loss: by a ``"closure"``, or in a ``"graph"``.
        curvature: of that loss.
        name: what errors call the optimiser.
    """

    real: bool
    whole: bool
    dtype: torch.dtype
    gradients: str
    curvature: float
    name: str


def params_of(inner: torch.optim.Optimizer) -> list[Tensor]:
    """The parameters of all groups."""
    return [p for group in inner.param_groups for p in group["params"]]


def uncopyable(inner: torch.optim.Optimizer) -> str:
    """Why a copy could reach the user's own weights, if it could."""
    for each in (inner, *(other for _, other in nested(inner))):
        for name, value in vars(each).items():
            if isinstance(value, torch.nn.Module):
                return f"it holds a module, {name!r}"
            if isinstance(value, types.FunctionType) and value.__closure__:
                return f"it holds a function that may hold tensors, {name!r}"
    return ""


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Random states, hooks and warnings afterwards are as before."""
    numpy: Any = sys.modules.get("numpy")
    states = random.getstate(), numpy.random.get_state() if numpy else None
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    try:
        with torch.random.fork_rng([*devices]), warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            with GlobalHooks().swapped():
                yield
    finally:
        random.setstate(states[0])
        if numpy:
            numpy.random.set_state(states[1])


def _seed() -> None:
    """The same draws for each trial; torch.manual_seed would seed devices that start later."""
    random.seed(0)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(0)
    torch.default_generator.manual_seed(0)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(0)


def trial(
    inner: torch.optim.Optimizer, schedule: Sequence[Sequence[float]], way: Way
) -> tuple[list[Tensor], bool]:
    """Where a copy's weights go: (steps, numbers) of displacements, for each of them.

    And whether all went along their gradients, where ``maximize`` does not say so, or the reverse.
    """
    make = torch.Generator().manual_seed(0)
    _seed()
    copied, params = _copy(inner, way, make)
    check_state(copied.state, way.name)
    if callable(getattr(copied, "train", None)):
        copied.train()  # type: ignore[attr-defined]
    start = [p.detach().clone() for p in params]
    drift = [torch.randn(p.shape, generator=make, dtype=torch.float64) for p in params]
    path: list[list[Tensor]] = []
    along = [0.0] * len(params)
    for lrs in schedule:
        for group, lr in zip(copied.param_groups, lrs, strict=True):
            group["lr"] = lr
        gradients = [
            (d + torch.randn(d.shape, generator=make, dtype=torch.float64)).to(p)
            for p, d in zip(params, drift, strict=True)
        ]
        losses = _closure(params, start, gradients, way)
        losses()
        copied.step(losses) if way.gradients == "closure" else copied.step()
        for group, lr in zip(copied.param_groups, lrs, strict=True):
            if group["lr"] != lr:
                mend = "writes its own lr in a step, which is MetaOptimize's to set; switch it off"
                bad("base", way.name, mend)
        path.append(
            [(p.detach() - s).double().flatten() for p, s in zip(params, start, strict=True)]
        )
        for i, (now, g) in enumerate(zip(path[-1], gradients, strict=True)):
            moved = now - path[-2][i] if len(path) > 1 else now
            along[i] += float(moved @ g.double().flatten())
    check_state(copied.state, way.name)
    climbs = [bool(group.get("maximize")) for group in copied.param_groups for _ in group["params"]]
    turned = [(x > 0) is not up for x, up in zip(along, climbs, strict=True) if x]
    return [torch.stack(each) for each in zip(*path, strict=True)], bool(turned) and all(turned)


def _closure(
    params: Sequence[Tensor], start: Sequence[Tensor], gradients: Sequence[Tensor], way: Way
) -> Callable[[], Any]:
    """Sets gradients and gives a loss; its curvature counts only where it is differentiated."""

    def losses() -> Any:
        total = torch.full((), 100.0, dtype=torch.float64)
        with torch.enable_grad():
            for p, s, g in zip(params, start, gradients, strict=True):
                d = p - s
                total = total + (g * d + 0.5 * way.curvature * d * d).sum().double().cpu()
        found: Sequence[Tensor] = [g.clone() for g in gradients]
        if way.gradients in ("closure", "graph"):
            graph = way.gradients == "graph"
            found = torch.autograd.grad(total, params, create_graph=graph)
        for p, g in zip(params, found, strict=True):
            p.grad = g.to_sparse() if way.gradients == "sparse" else g
        return total

    return losses


def _copy(
    inner: torch.optim.Optimizer, way: Way, make: torch.Generator
) -> tuple[torch.optim.Optimizer, list[Tensor]]:
    """A copy that holds small weights in place of the real ones, and those that will move."""
    memo: dict[int, Any] = {}
    for p in params_of(inner):
        if id(p) not in memo:
            memo[id(p)] = torch.nn.Parameter(_small(p, way, make))
    for each in (inner, *(other for _, other in nested(inner))):
        for p, entries in each.state.items():
            for value in entries.values() if isinstance(p, Tensor) else ():
                if isinstance(value, Tensor) and value.shape == p.shape:
                    dtype = way.dtype if value.dtype == p.dtype else value.dtype
                    memo[id(value)] = value.detach()[_corner(p, way)].to(dtype, copy=True)
    kept: dict[str, int] = {}
    copied = copy.deepcopy(Whole(inner), memo).optimizer
    for group in copied.param_groups:
        chosen = []
        for p in group["params"]:
            alike = f"{p.dim()} {settings_of(group)}"
            kept[alike] = kept.get(alike, 0) + 1
            if p.numel() and kept[alike] <= ALIKE:
                chosen.append(p)
        group["params"] = chosen
    return copied, params_of(copied)


def _corner(p: Tensor, way: Way) -> tuple[slice, ...]:
    return tuple(slice(None if way.whole else SIDE) for _ in p.shape)


def _small(p: Tensor, way: Way, make: torch.Generator) -> Tensor:
    if is_lazy(p):
        return torch.zeros(0, dtype=way.dtype, device=p.device)
    if way.real and type(p.data) is Tensor and not p.is_meta:
        return p.detach()[_corner(p, way)].to(way.dtype, copy=True)
    shape = [side if way.whole else min(side, SIDE) for side in p.shape]
    return torch.randn(shape, generator=make, dtype=way.dtype).to(p.device)
