"""What the general engine refuses, and why."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from clmeta.errors import NonFiniteError, bad
from clmeta.general.curvature import Linearised
from clmeta.general.meta_parameters import direction_depends_on_gradient
from clmeta.ground.checks import one_of
from clmeta.ground.forward import along, leaves
from clmeta.ground.trial import check_rule
from clmeta.rules import Rule

APPROXIMATIONS = ("full", "2x2", "L")
HESSIANS = ("exact", "diagonal", "free")


def check_mode(
    approximation: str,
    hessian: str,
    condensed: bool | None,
    rectify: bool,
    meta_first: bool,
    diagonal_samples: int | None,
) -> None:
    """Raise BadArgument for a combination that has no meaning, with the reason."""
    one_of("approximation", approximation, APPROXIMATIONS)
    one_of("hessian", hessian, HESSIANS)
    if condensed and approximation != "L":
        bad(
            "condensed",
            condensed,
            f"{approximation!r} propagates how every beta changes every other, which one vector "
            "per weight cannot hold; use approximation='L'",
        )
    if rectify and hessian != "diagonal":
        bad(
            "rectify",
            rectify,
            f"with hessian={hessian!r} a weight's trace has no decay factor of its own to hold "
            "above zero; use hessian='diagonal'",
        )
    if rectify and approximation == "full":
        bad("rectify", rectify, "max(0, .) is not differentiated in 'full'; use 'L' or '2x2'")
    if meta_first and approximation != "L":
        bad(
            "meta_first",
            meta_first,
            f"{approximation!r} differentiates beta's path, which the paper defines for the old "
            "beta only; use approximation='L'",
        )
    if diagonal_samples is not None and hessian != "diagonal":
        bad("diagonal_samples", diagonal_samples, "only hessian='diagonal' estimates a diagonal")


def check_jvp(rule: Rule, argument: str, like: Tensor, needs_gradient: bool) -> None:
    """Raise BadArgument unless a rule's update can be differentiated where the engine does so.

    Args:
        rule: rule to try on a tensor of ones.
        argument: its argument's name.
        like: weights or beta.
        needs_gradient: whether the mode uses the direction's derivative by the gradient.
    """
    name = type(rule).__name__
    for slot, value in rule.init(like).items():
        if not value.is_floating_point():
            bad(
                argument, rule, f"{name}'s state {slot!r} must be of floating point; t counts steps"
            )
    check_rule(rule, like, argument, t=1)
    g = torch.ones_like(like)

    def update(g: Tensor) -> tuple:
        u, state = rule.update(g, rule.init(like), 1)
        return u, dict(state)

    try:
        along(update, (g,), (torch.stack([g, g]),))
        flat = needs_gradient and rule.differentiable and not direction_depends_on_gradient(rule)
    except (RuntimeError, NotImplementedError, TypeError) as error:
        reason = str(error).strip().splitlines()[0]
        bad(
            argument,
            rule,
            f"torch cannot differentiate {name}.update ({reason}); write it in pure tensor "
            "operations, or use clmeta.MetaOptimize, which never differentiates a rule",
        )
    if flat:
        bad(
            argument,
            rule,
            f"{name}'s direction has derivative zero by the gradient, so this mode would be the "
            "Hessian-free one at a higher price; use hessian='free' and approximation='L', or set "
            "differentiable = False on the rule to say that this is meant",
        )


def require_finite(t: int, at: Linearised, after: dict[str, Any]) -> None:
    """Raise NonFiniteError naming the first stage of a step that is not finite.

    Args:
        t: number of the step, from 0.
        at: loss, gradient and curvature of the step.
        after: meta-gradient ``z`` and the new ``x``, ``y``, ``X``, ``Y``, ``Q``.
    """
    ok = torch.ones((), dtype=torch.bool, device=at.value.device)

    def finite(tree: Any) -> Tensor:
        return torch.stack([ok, *(torch.isfinite(x).all() for x in leaves(tree))]).all()

    if finite((at.value, at.g, at.dg or {}, after)):
        return
    stages = {
        "loss": at.value,
        "gradient": at.g,
        "curvature (the gradient's change along the trace)": at.dg or {},
        "meta-gradient": after["z"],
        "weight, base state or step size after the update": (after["x"], after["y"]),
        "trace (X, Y or Q) after the update": (after["X"], after["Y"], after["Q"]),
    }
    what = next(name for name, tree in stages.items() if not finite(tree))
    raise NonFiniteError(
        f"step {t}: the {what} is not finite; the update was withheld. Lower alpha0 or eta, set "
        "alpha_max, or use hessian='free'"
    )
