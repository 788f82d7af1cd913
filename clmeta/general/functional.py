"""A module as a function of its parameters."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.func import functional_call

from clmeta.errors import bad
from clmeta.general.curvature import Params


def functional_loss(
    model: nn.Module, criterion: Callable[[Tensor, Tensor], Tensor]
) -> tuple[Callable[..., Tensor], Params]:
    """Loss function and parameters of a module, as ``GeneralMetaOptimize`` takes them.

    Use it as ``loss, params = functional_loss(model, F.cross_entropy)`` and
    ``GeneralMetaOptimize(loss, params).step(x, y)``. Buffers are constants: batch normalisation
    must be in evaluation mode.

    Args:
        model: module whose trainable parameters are learned.
        criterion: ``criterion(model(x), y) -> scalar``.

    Returns:
        ``loss(params, x, y)`` and the trainable parameters by name.
    """
    trainable = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
    frozen = {n: p.detach() for n, p in model.named_parameters() if not p.requires_grad}
    constants = {**frozen, **dict(model.named_buffers())}

    def loss(params: Params, x: Tensor, y: Tensor) -> Tensor:
        return criterion(functional_call(model, {**constants, **params}, (x,)), y)

    return loss, trainable


def copy_into(module: nn.Module, params: Params) -> None:
    """Write weights into a module's parameters of the same names.

    Raises:
        BadArgument: if the module lacks a name; nothing is written then.
    """
    own = dict(module.named_parameters())
    for name in params:
        if name not in own:
            bad("module", type(module).__name__, f"it has no parameter {name!r}")
    for name, value in params.items():
        own[name].data.copy_(value)
