"""Backward passes that keep their graph where the optimiser needs it."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor


def backward(loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
    """``loss.backward()``, with its graph for `MetaOptimize` with a Hessian.

    The next step's ``zero_grad`` lets the graph go.
    """
    if not getattr(optimizer, "needs_graph", False):
        loss.backward()
        return
    with warnings.catch_warnings():
        # `zero_grad` breaks the cycle that torch warns of.
        warnings.filterwarnings("ignore", "Using backward", UserWarning)
        loss.backward(create_graph=True)
