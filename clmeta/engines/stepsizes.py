"""beta, alpha and the meta state of all blocks, as vectors that never leave the device."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from clmeta.errors import NonFiniteError
from clmeta.rules import Rule

NEVER = -1


def meta_changes(
    rule: Rule,
    z: Tensor,
    beta: Tensor,
    state: dict[str, Tensor],
    count: Tensor,
    eta: float | Tensor,
    low: Tensor | float | None,
    high: Tensor | float,
) -> list[tuple[Tensor, Tensor]]:
    """Old and new beta, then old and new meta state: ``beta <- beta - eta u(z)`` (Sec. 3, eq. 7).

    Args:
        rule: the meta update.
        z: meta-gradients, in the shape of ``beta`` and ``state``.
        count: number of this update, from 1.
        eta: meta step size.
        low, high: bounds of beta.
    """
    u, after = rule.update(z, state, count)
    moved = torch.clamp(beta - eta * u, low, high)  # type: ignore[arg-type]
    return [(beta, moved), *((state[name], new) for name, new in after.items())]


class StepSizes:
    """Step sizes alpha = exp(beta) of B blocks and the meta update that moves beta.

    Attributes:
        beta: (B,) log step sizes.
        alpha: (B,) ``exp(beta)``, always current and updated in place, so views of it are too.
        state: the meta rule's state, each entry (B,).
        t: (B,) number of meta updates made, by block.
        largest: bound of every beta that keeps its alpha finite.
        calls, withheld, first_withheld: 0-dim counts of optimiser steps, of updates withheld
            for non-finite values, and the step of the first one (-1: none).
        culprits: (B,) blocks whose meta-gradient was not finite at the first one.
    """

    VECTORS = ("beta", "t", "culprits")
    COUNTS = ("calls", "withheld", "first_withheld")

    def __init__(self, rule: Rule | None, device: torch.device, dtype: torch.dtype) -> None:
        self.rule = rule
        self.largest = math.log(torch.finfo(dtype).max) - 1
        self.beta = torch.empty(0, device=device, dtype=dtype)
        self.alpha = self.beta.clone()
        self.t = self.beta.clone()
        self.culprits = torch.empty(0, device=device, dtype=torch.bool)
        self.state: dict[str, Tensor] = rule.init(self.beta) if rule else {}
        self.calls = torch.zeros((), device=device, dtype=torch.int64)
        self.withheld = self.calls.clone()
        self.first_withheld = torch.full_like(self.calls, NEVER)
        self._etas: tuple[tuple[float, ...], Tensor] | None = None

    def __len__(self) -> int:
        return self.beta.numel()

    def add_block(self, alpha0: float) -> None:
        """Append a block whose step size starts at alpha0."""
        new = self.beta.new_full((1,), math.log(alpha0))
        self.beta = torch.cat([self.beta, new])
        self.alpha = self.beta.exp()
        self.t = torch.cat([self.t, self.t.new_zeros(1)])
        self.culprits = torch.cat([self.culprits, self.culprits.new_zeros(1)])
        if self.rule is not None:
            fresh = self.rule.init(new)
            self.state = {k: torch.cat([v, fresh[k]]) for k, v in self.state.items()}

    def update(
        self,
        z: Tensor,
        etas: Sequence[float],
        low: float | None,
        high: float,
        keep: Tensor | None,
    ) -> None:
        """One meta update, see `meta_changes`.

        Args:
            z: (B,) meta-gradients.
            etas: B meta step sizes.
            low, high: bounds of beta.
            keep: (B,) bool, the blocks to update; None for all of them.
        """
        if self.rule is None:
            return
        t = self.t + 1
        eta = etas[0] if len(set(etas)) == 1 else self._on_device(tuple(etas))
        changes = meta_changes(self.rule, z, self.beta, self.state, t, eta, low, high)
        # In place: a CUDA graph replays writes to these tensors, not new names for others.
        for old, new in (*changes, (self.t, t)):
            old.copy_(new if keep is None else torch.where(keep, new, old))
        torch.exp(self.beta, out=self.alpha)

    def _on_device(self, etas: tuple[float, ...]) -> Tensor:
        """Kept from step to step: a CUDA graph can't capture a copy from the host."""
        if self._etas is None or self._etas[0] != etas:
            self._etas = etas, self.beta.new_tensor(etas)
        return self._etas[1]

    def note_withheld(self, z: Tensor, bad: Tensor) -> None:
        """Where bad, count a withheld update and keep where the first was; no synchronisation."""
        first = bad & (self.first_withheld == NEVER)
        self.withheld += bad
        self.first_withheld.copy_(torch.where(first, self.calls - 1, self.first_withheld))
        self.culprits.copy_(torch.where(first, ~torch.isfinite(z), self.culprits))

    def check_finite(self, names: Sequence[str]) -> None:
        """Raise NonFiniteError if an update was withheld; reads from the device."""
        step = int(self.first_withheld)
        if step == NEVER:
            return
        blocks = [name for name, bad in zip(names, self.culprits.tolist(), strict=True) if bad]
        raise NonFiniteError(
            f"step {step}: gradient or meta-gradient not finite in block "
            f"{', '.join(repr(b) for b in blocks)}; the update was withheld "
            f"({int(self.withheld)} in all). Lower alpha0 or eta, bound step sizes with alpha_max, "
            "clip gradients, or pass nonfinite='skip' to skip and count such steps"
        )

    def state_dict(self) -> dict[str, Any]:
        """Tensors only, all copies."""
        out: dict[str, Any] = {k: getattr(self, k).clone() for k in self.VECTORS + self.COUNTS}
        out["state"] = {k: v.clone() for k, v in self.state.items()}
        return out

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Take over copies of the saved tensors, on this object's device."""
        for key in self.VECTORS + self.COUNTS:
            mine = getattr(self, key)
            setattr(self, key, saved[key].to(device=mine.device, dtype=mine.dtype, copy=True))
        self.alpha = self.beta.exp()
        # In the dtype that the rule's own init gives, which need not be beta's.
        self.state = {k: v.to(self.state[k], copy=True) for k, v in saved["state"].items()}
