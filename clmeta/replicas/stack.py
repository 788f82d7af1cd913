"""The optimisers of several runs as learners that are stepped together."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from clmeta.engines.learners import Learners, Numbers, fresh_learners
from clmeta.optim.optimizer import MetaOptimize


def stack(
    optimizers: Sequence[MetaOptimize],
    weights: Sequence[Tensor],
    params: Sequence[Sequence[Tensor]],
) -> Learners:
    """R learners that share network, base rule and meta rule.

    Args:
        optimizers: one per learner, over networks of one architecture, not yet stepped.
        weights: for each parameter that is learnt, the learners' values (R, *shape).
        params: for each learner, the parameters in the order of ``weights``.

    Column j of the (R, B) arrays is the learner's own block j; learners with fewer blocks leave
    columns unused.
    """
    first = optimizers[0]
    assert first.base_rule is not None
    device, dtype = first.alpha.device, first.alpha.dtype
    owner = []
    for optimizer, mine in zip(optimizers, params, strict=True):
        groups = enumerate(optimizer.param_groups)
        block = {p: j for j, group in groups for p in group["params"]}
        owner.append([block[p] for p in mine])
    width = max(len(o.param_groups) for o in optimizers)
    rows = []
    for optimizer in optimizers:
        own = optimizer.param_groups
        filled = [*own, *[own[0]] * (width - len(own))]
        bounds = [optimizer.beta_bounds(group) for group in filled]
        settings = [[g[k] for g in filled] for k in ("eta", "gamma", "weight_decay")]
        rows.append([*settings, *zip(*bounds, strict=True)])
    wide = torch.float64 if device.type == "cpu" else dtype
    numbers = torch.tensor(rows, dtype=torch.float64).transpose(0, 1).to(device, wide).contiguous()
    alphas = [[g["alpha0"] for g in o.param_groups] for o in optimizers]
    betas = [[math.log(a) for a in (*each, *[each[0]] * (width - len(each)))] for each in alphas]
    return fresh_learners(
        first.base_rule,
        first.meta_rule,
        first.granularity,
        list(weights),
        torch.tensor(betas, device=device, dtype=dtype),
        torch.tensor(owner, device=device).view(len(optimizers), -1),
        Numbers(*numbers),
    )
