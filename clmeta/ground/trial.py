"""A rule's first call, made when its optimiser is: what it lacks is said then, by name."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from clmeta.errors import bad

#: Numbers up to which a rule is tried on all of a parameter's shape.
MOST = 1_000_000
FORM = "update(self, g, state, t) returns (u, next state), each of them in the form of g"


@torch.no_grad()
def check_rule(rule: Any, like: Tensor, argument: str, t: Any = None) -> None:
    """Raise BadArgument unless a rule's update can be called and returns what it must.

    Args:
        rule: a `clmeta.rules.Rule`.
        like: what it is to move: a parameter (the base update) or several betas (the meta update).
        argument: ``"base"`` or ``"meta"``.
        t: the count that it is called with; None: as in MetaOptimize, where the meta update gets
            a tensor with a count for each beta.
    """
    name = type(rule).__name__
    shape = (2,) if is_lazy(like) else tuple(like.shape)
    if math.prod(shape) > MOST:
        return
    trial = copy.copy(rule)  # a call may change a rule that keeps count of something
    zeros = torch.zeros(shape, dtype=like.dtype, device=like.device)
    try:
        state = trial.init(zeros)
    except Exception as error:
        bad(argument, name, f"init(like) fails with {_said(error)}")
    if not isinstance(state, dict):
        bad(argument, name, f"init(like) returns a {type(state).__name__}; return a dict")
    if state.keys() != {*rule.slots}:
        bad(
            argument, name, f"its state is {[*state]} and its slots {rule.slots}: name all in slots"
        )
    if t is None:
        t = torch.ones_like(zeros) if argument == "meta" else 1
    try:
        result = trial.update(torch.ones_like(zeros), dict(state), t)
    except Exception as error:
        hint = "; t is a tensor here: torch.where(t == 1, a, b) for `a if t == 1 else b`"
        text = f"update(g, state, t) fails with {_said(error)}"
        bad(argument, name, text + (hint if isinstance(t, Tensor) else ""))
    if not isinstance(result, tuple) or len(result) != 2 or not isinstance(result[1], dict):
        bad(argument, name, FORM)
    values = {"u": result[0], **{slot: result[1].get(slot) for slot in rule.slots}}
    for what, value in values.items():
        if not isinstance(value, Tensor) or value.shape != zeros.shape:
            shown = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            bad(argument, name, f"{what} is {shown} for a g of {shape}: {FORM}")


def _said(error: Exception) -> str:
    """An error's kind and the first line of its text."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
