"""Weights, traces, rule states and step sizes of R learners, stacked along a first dimension.

Everything that differs between learners is a number per learner here, so that one operation moves
all of them. Column j of the (R, B) arrays is the learner's own block j; learners with fewer blocks
leave columns unused.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from clmeta.engines.lists import state_dtype
from clmeta.engines.stepsizes import meta_changes
from clmeta.errors import NonFiniteError
from clmeta.optim.optimizer import MetaOptimize
from clmeta.rules import Rule


class Stacked:
    """The state of R learners that share network, base rule and meta rule.

    Args:
        optimizers: one per learner, over networks of one architecture, not yet stepped.
        weights: for each parameter that is learnt, the learners' values (R, *shape).
        params: for each learner, the parameters in the order of ``weights``.
        base, meta: the rules; None for fixed step sizes.

    Attributes:
        w, h: lists of (R, *shape), one per parameter; h is empty for fixed step sizes.
        slots: the base rule's state, slot name to such a list.
        beta, alpha, t: (R, B) log step sizes, step sizes and numbers of meta updates.
        steps: (R, 1) number of updates made of the weights.
        block: (R, P) index of the block that each parameter belongs to.
        withheld, first: (R,) number of withheld updates and step of the first one, or -1.
        culprits: (R, B) blocks that were not finite at the first one.
    """

    def __init__(
        self,
        optimizers: Sequence[MetaOptimize],
        weights: Sequence[Tensor],
        params: Sequence[Sequence[Tensor]],
        base: Rule,
        meta: Rule | None,
    ) -> None:
        self.base, self.meta = base, meta
        self.block_names = [o.block_names for o in optimizers]
        self.granularity = optimizers[0].granularity
        device, dtype = optimizers[0].alpha.device, optimizers[0].alpha.dtype
        self.w = list(weights)
        # State, like the optimiser's own, is in float32 for half-precision weights.
        like = [torch.zeros_like(w, dtype=state_dtype(w)) for w in self.w]
        self.slots = {
            slot: [base.init(x)[slot].clone() for x in like] for slot in base.init(like[0])
        }
        self.h = [x.clone() for x in like] if meta is not None else []

        def numbers(name: str) -> Tensor:
            values = [o.param_groups[0][name] for o in optimizers]
            return torch.tensor(values, dtype=torch.float64).to(device, dtype)[:, None]

        self.eta, self.gamma = numbers("eta"), numbers("gamma")
        self.kappa = numbers("weight_decay")
        self.kappas: list[float] = [o.param_groups[0]["weight_decay"] for o in optimizers]
        self.gammas: list[float] = [o.param_groups[0]["gamma"] for o in optimizers]
        bounds = [o.beta_bounds(o.param_groups[0]) for o in optimizers]
        self.low, self.high = (
            torch.tensor([[rest if b[i] is None else b[i]] for b in bounds]).to(device, dtype)
            for i, rest in enumerate((-math.inf, math.inf))
        )
        width = max(len(names) for names in self.block_names)
        blocks = [
            {p: j for j, group in enumerate(o.param_groups) for p in group["params"]}
            for o in optimizers
        ]
        owner = [[of[p] for p in mine] for of, mine in zip(blocks, params, strict=True)]
        self.block = torch.tensor(owner, device=device).view(len(optimizers), -1)
        # A block without any learnt parameter keeps its step size, as in the optimiser.
        self.active = torch.zeros(len(optimizers), width, dtype=torch.bool, device=device)
        self.active.scatter_(1, self.block, True)
        alpha0 = [o.param_groups[0]["alpha0"] for o in optimizers]
        log_alpha0 = torch.tensor([[math.log(a)] for a in alpha0], device=device, dtype=dtype)
        self.beta = log_alpha0.repeat(1, width)
        self.alpha = self.beta.exp()
        self.t = torch.zeros_like(self.beta)
        self.meta_state = meta.init(self.beta) if meta is not None else {}
        self.steps = torch.zeros_like(self.eta)
        self.calls = torch.zeros((), device=device, dtype=torch.int64)
        self.withheld = torch.zeros(len(optimizers), device=device, dtype=torch.int64)
        self.first = torch.full_like(self.withheld, -1)
        self.culprits = torch.zeros_like(self.active)

    def __len__(self) -> int:
        return len(self.block_names)

    def tensors(self) -> list[Tensor]:
        """Everything that a step changes."""
        return [
            *self.w,
            *self.h,
            *(x for xs in self.slots.values() for x in xs),
            *(self.beta, self.alpha, self.t, *self.meta_state.values()),
            *(self.steps, self.calls, self.withheld, self.first, self.culprits),
        ]

    def keep(self, rows: Sequence[int]) -> None:
        """Forget all learners but those in ``rows``."""
        index = torch.tensor(rows, device=self.beta.device)
        for name in ("w", "h"):
            setattr(self, name, [x[index] for x in getattr(self, name)])
        self.slots = {k: [x[index] for x in xs] for k, xs in self.slots.items()}
        self.meta_state = {k: x[index] for k, x in self.meta_state.items()}
        vectors = ("eta", "gamma", "kappa", "low", "high", "block", "active", "beta", "alpha", "t")
        for name in (*vectors, "steps", "withheld", "first", "culprits"):
            setattr(self, name, getattr(self, name)[index])
        for name in ("kappas", "gammas", "block_names"):
            setattr(self, name, [getattr(self, name)[r] for r in rows])

    def by_block(self, parts: Tensor) -> Tensor:
        """Sums (R, B) over each block's parameters of parts (R, P)."""
        return torch.zeros_like(self.beta).scatter_add_(1, self.block, parts.to(self.beta.dtype))

    def alphas(self) -> Tensor:
        """The step size (R, P) of each parameter."""
        return self.alpha.gather(1, self.block)

    def note(self, z: Tensor, ok: Tensor) -> None:
        """Count the learners whose update is withheld, ``ok`` (R, 1); without synchronising."""
        lost = ~ok[:, 0]
        first = lost & (self.first < 0)
        self.withheld += lost
        self.first.copy_(torch.where(first, self.calls - 1, self.first))
        self.culprits.copy_(torch.where(first[:, None], ~torch.isfinite(z), self.culprits))

    def meta_update(self, z: Tensor, ok: Tensor | None) -> None:
        """beta <- beta - eta u(z), clamped, for the learners that are ``ok`` (R, 1), or all."""
        if self.meta is None:
            return
        t = self.t + 1
        state = self.meta_state
        changes = meta_changes(self.meta, z, self.beta, state, t, self.eta, self.low, self.high)
        keep = self.active if ok is None else self.active & ok
        for old, new in (*changes, (self.t, t)):
            old.copy_(torch.where(keep, new, old))
        torch.exp(self.beta, out=self.alpha)

    def step_sizes(self, row: int) -> dict[str, float]:
        """Block name to alpha of one learner."""
        names = self.block_names[row]
        return dict(zip(names, self.alpha[row, : len(names)].tolist(), strict=True))

    def error(self, row: int) -> NonFiniteError:
        """What the optimiser itself would raise after a withheld update."""
        bad = self.culprits[row].tolist()
        blocks = [name for name, b in zip(self.block_names[row], bad, strict=False) if b]
        return NonFiniteError(
            f"step {int(self.first[row])}: gradient or meta-gradient not finite in block "
            f"{', '.join(repr(b) for b in blocks)}; the update was withheld. Lower alpha0 or eta, "
            "bound step sizes with alpha_max, clip gradients, or pass nonfinite='skip' to skip and "
            "count such steps"
        )


def masked_move(
    s: Stacked,
    i: int,
    place: slice | tuple[slice, ...],
    g: Tensor,
    alpha: Tensor,
    t: Tensor,
    ok: Tensor,
) -> None:
    """The update of parameter i at one place, where ok; all arguments broadcast against g.

    dw = -alpha (u + kappa w); w <- w + dw; h <- gamma (1 - alpha kappa) h + dw.
    """
    rows = place if isinstance(place, slice) else place[0]
    lead = (-1,) + (1,) * (g.dim() - 1)
    kappa, gamma = s.kappa[rows].view(lead), s.gamma[rows].view(lead)
    old = {name: xs[i][place] for name, xs in s.slots.items()}
    u, new = s.base.update(g, old, t)
    w = s.w[i][place]
    dw = -alpha * (u + kappa * w)
    w.copy_(torch.where(ok, w + dw, w))
    if s.h:
        h = s.h[i][place]
        h.copy_(torch.where(ok, gamma * (1 - alpha * kappa) * h + dw, h))
    for name, before in old.items():
        before.copy_(torch.where(ok, new[name], before))
