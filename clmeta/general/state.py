"""Saving and loading the general engine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from clmeta.errors import bad, require
from clmeta.ground.forward import Tree

if TYPE_CHECKING:
    from clmeta.general.engine import GeneralMetaOptimize

#: What changes from step to step: x, y and their sensitivities.
PARTS = ("x", "y", "X", "Y", "Q")


def mode_of(engine: GeneralMetaOptimize) -> dict[str, Any]:
    """What two engines must share for one to go on from the other's state."""
    return {
        "approximation": engine.approximation,
        "hessian": engine.hessian,
        "condensed": engine.condensed,
        "labels": engine.labels,
    }


def check_mode_of(engine: GeneralMetaOptimize, state: Mapping[str, Any]) -> None:
    """Raise BadArgument if a saved state is of another mode."""
    missing = [key for key in (*PARTS, "t", "mode", "generator", "z") if key not in state]
    require(not missing, "state", sorted(state), f"not a state of this class: no {missing}")
    for key, own in mode_of(engine).items():
        theirs = state["mode"].get(key)
        if theirs != own:
            bad(f"state[{key!r}]", theirs, f"this optimiser has {own!r}; build it with the same")


def like(own: Tree, new: Tree, path: str) -> Tree:
    """Copies of saved tensors in the nesting, device and dtype of this engine's own."""
    if isinstance(own, dict):
        if not isinstance(new, Mapping) or set(own) != set(new):
            bad(f"state[{path!r}]", list(new), f"expected the names {list(own)}")
        return {key: like(own[key], new[key], f"{path}.{key}") for key in own}
    if isinstance(own, tuple):
        require(len(own) == len(new), f"state[{path!r}]", len(new), f"expected {len(own)} parts")
        return tuple(
            like(a, b, f"{path}[{i}]") for i, (a, b) in enumerate(zip(own, new, strict=True))
        )
    if own.shape != new.shape:
        bad(f"state[{path!r}]", tuple(new.shape), f"expected the shape {tuple(own.shape)}")
    return new.to(device=own.device, dtype=own.dtype, copy=True)
