"""A rule's first call, made when the optimiser is: what it lacks is said then, by name."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from clmeta.errors import bad
from clmeta.rules import Rule

#: Numbers up to which a rule is tried on all of a parameter's shape.
MOST = 1_000_000
FORM = "update(self, g, state, t) returns (u, next state), each of them in the form of g"


def check_rule(rule: Rule, like: Tensor, argument: str) -> None:
    """Raise BadArgument unless a rule's update can be called and returns what it must.

    Args:
        like: what it is to move: a parameter (the base update) or several betas (the meta update,
            whose t is a tensor with a count for each).
        argument: ``"base"`` or ``"meta"``.
    """
    name = type(rule).__name__
    if like.numel() > MOST:
        return
    trial = copy.copy(rule)  # a call may change a rule that keeps count of something
    zeros = torch.zeros_like(like, requires_grad=False)
    state = trial.init(zeros)
    if state.keys() != {*rule.slots}:
        bad(
            argument, name, f"its state is {[*state]} and its slots {rule.slots}: name all in slots"
        )
    t: Any = torch.ones_like(zeros) if argument == "meta" else 1
    try:
        result = trial.update(torch.ones_like(zeros), dict(state), t)
    except Exception as error:
        line = (str(error).strip().splitlines() or [""])[0]
        hint = "; t is a tensor here: torch.where(t == 1, a, b) for `a if t == 1 else b`"
        text = f"update(g, state, t) fails with {type(error).__name__}: {line}"
        bad(argument, name, text + (hint if argument == "meta" else ""))
    if not isinstance(result, tuple) or len(result) != 2 or not isinstance(result[1], dict):
        bad(argument, name, FORM)
    values = {"u": result[0], **{slot: result[1].get(slot) for slot in rule.slots}}
    for what, value in values.items():
        if not isinstance(value, Tensor) or value.shape != like.shape:
            shown = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            bad(argument, name, f"{what} is {shown} for a g of {tuple(like.shape)}: {FORM}")
