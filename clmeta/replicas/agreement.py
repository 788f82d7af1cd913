"""Whether batched learners compute what each network computes by itself."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from clmeta.replicas.lockstep import Lockstep
from clmeta.replicas.network import NotBatchable
from clmeta.replicas.program import Program
from clmeta.runs.prepared import Prepared

#: Samples on which batched gradients are compared with the network's own; an odd number, for a
#: majority.
SAMPLES = 5
#: Largest difference of the two, relative to a tensor's largest number: on the CPU, and on devices
#: whose convolutions may round to TF32.
TOLERANCE = 1e-3
TOLERANCE_ON_DEVICE = 1e-2


def check(program: Program, prepared: Sequence[Prepared]) -> None:
    """Batched losses and gradients against the network's own, for every learner.

    More than half of the samples must agree: rounding may turn a single maximum or ReLU
    elsewhere.
    """
    first = next(iter(Lockstep([p.stream for p in prepared])))
    samples = zip(first.x[:SAMPLES], first.y[:SAMPLES], strict=True)
    agreed, finite = torch.stack([_compared(program, prepared, x, y) for x, y in samples], 2)
    if not finite.any():
        raise NotBatchable("no gradient is finite from the start")
    if not (2 * agreed.sum(1) > agreed.shape[1]).all():
        raise NotBatchable("batched and ordinary gradients differ")


def _compared(program: Program, prepared: Sequence[Prepared], x: Tensor, y: Tensor) -> Tensor:
    """Bool (2, R): whether loss and gradients of one batch are the network's own, and finite.

    Where the network's own numbers are not finite, nor may be the batched ones.
    """
    grads, losses, _ = program.gradients(x, y)
    dense = [g if isinstance(g, Tensor) else g.dense() for g in grads]
    compared = []
    for row, each in enumerate(prepared):
        named = dict(each.model.named_parameters())
        params = [named[name] for name in program.network.names]
        loss = torch.nn.functional.cross_entropy(each.model(x[row]), y[row])
        pairs = zip(
            [losses[row], *(g[row] for g in dense)],
            [loss.detach(), *torch.autograd.grad(loss, params)],
            strict=True,
        )
        close = torch.stack([_close(mine, theirs) for mine, theirs in pairs])
        compared.append(close.all(0))
    return torch.stack(compared, 1)


def _close(mine: Tensor, theirs: Tensor) -> Tensor:
    """Bool (2,): whether ``mine`` is ``theirs`` or neither is finite; whether ``theirs`` is."""
    scale = theirs.abs().max()
    finite = torch.isfinite(scale)
    tolerance = TOLERANCE if theirs.device.type == "cpu" else TOLERANCE_ON_DEVICE
    same = (mine - theirs).abs().max() <= tolerance * scale + 1e-30
    return torch.stack([torch.where(finite, same, ~torch.isfinite(mine).all()), finite])
