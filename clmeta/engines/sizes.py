"""beta, alpha and the meta state of the blocks of R learners, as arrays that stay on the device."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from clmeta.errors import NonFiniteError
from clmeta.rules import Rule

NEVER = -1


def state_dtype(p: Tensor) -> torch.dtype:
    """State is kept in float32 for half-precision weights."""
    return torch.float32 if p.dtype.itemsize < 4 else p.dtype


def put(old: Tensor, new: Tensor, ok: Tensor | None) -> None:
    """``old <- new`` in place, where ok; a CUDA graph replays writes, not new names for tensors."""
    if ok is None:
        old.copy_(new)
    elif old.dtype == new.dtype:
        torch.where(ok, new, old, out=old)
    else:
        old.copy_(torch.where(ok, new.to(old.dtype), old))


def blend(old: Tensor, scale: Any, x: Tensor, a: Any, ok: Tensor | None) -> None:
    """``old <- scale old + a x`` in place, where ok; scale and a are numbers or broadcast."""
    scaled = isinstance(scale, Tensor) or scale != 1.0
    if ok is not None:
        put(old, (scale * old if scaled else old) + a * x, ok)
        return
    if scaled:
        old.mul_(scale)
    if isinstance(a, Tensor):
        old.add_(a * x)
    else:
        old.add_(x, alpha=a)


def meta_update(
    rule: Rule,
    z: Tensor,
    beta: Tensor,
    state: dict[str, Tensor],
    t: Any,
    eta: Any,
    low: Any,
    high: Any,
    ok: Tensor | None,
) -> None:
    """``beta <- beta - eta u(z)`` within bounds, in place where ok (paper, Sec. 3, eq. 7).

    Args:
        rule: the meta update.
        z: meta-gradients, in the shape of ``beta`` and ``state``.
        t: number of this update, from 1; a tensor.
        eta, low, high: meta step size and bounds of beta, broadcast.
    """
    u, after = rule.update(z, state, t)
    put(beta, torch.clamp(beta - eta * u, low, high), ok)
    for name, old in state.items():
        put(old, after[name], ok)


class StepSizes:
    """Step sizes alpha = exp(beta) of R learners' B blocks, and what is known of the last step.

    Args:
        rule: the meta update; None for fixed step sizes.
        beta: (R, B) the first log step sizes.

    Attributes:
        beta: (R, B) log step sizes.
        alpha: (R, B) ``exp(beta)``, always current and updated in place, so views of it are too.
        state: the meta rule's state, each entry (R, B).
        t: (R, B) number of meta updates made.
        z: (R, B) meta-gradients of the last step, 0 for blocks without gradient.
        largest: bound of every beta that keeps its alpha finite.
        calls: 0-dim count of steps.
        withheld, first: (R,) number of updates withheld for non-finite values, and the step of the
            first one (-1: none).
        culprits: (R, B) blocks whose meta-gradient was not finite at the first one.
    """

    #: Per learner and block; per learner; both under the names that checkpoints use.
    BLOCKS: ClassVar = {"beta": "beta", "t": "t", "culprits": "culprits"}
    LEARNERS: ClassVar = {"withheld": "withheld", "first": "first_withheld"}

    def __init__(self, rule: Rule | None, beta: Tensor) -> None:
        self.rule = rule
        self.largest = math.log(torch.finfo(beta.dtype).max) - 1
        self.beta = beta
        self.alpha = beta.exp()
        self.t = torch.zeros_like(beta)
        # In double precision, as the C programs add it up; not every accelerator has that.
        wide = beta.dtype if beta.device.type == "mps" else torch.float64
        self.z = torch.zeros_like(beta, dtype=wide)
        self.culprits = torch.zeros_like(beta, dtype=torch.bool)
        self.state: dict[str, Tensor] = rule.init(beta) if rule else {}
        self.calls = torch.zeros((), device=beta.device, dtype=torch.int64)
        self.withheld = self.calls.repeat(len(beta))
        self.first = torch.full_like(self.withheld, NEVER)

    def __len__(self) -> int:
        return len(self.beta)

    def tensors(self) -> list[Tensor]:
        """Everything that a step changes."""
        fixed = (self.beta, self.alpha, self.t, self.z, self.culprits, self.calls)
        return [*fixed, self.withheld, self.first, *self.state.values()]

    def add_block(self, alpha0: float) -> None:
        """Append a block whose step size starts at alpha0."""
        new = self.beta.new_full((len(self), 1), math.log(alpha0))
        self.beta = torch.cat([self.beta, new], 1)
        self.alpha = self.beta.exp()
        for name in ("t", "z", "culprits"):
            old = getattr(self, name)
            setattr(self, name, torch.cat([old, old.new_zeros(new.shape)], 1))
        if self.rule is not None:
            fresh = self.rule.init(new)
            self.state = {k: torch.cat([v, fresh[k]], 1) for k, v in self.state.items()}

    def keep(self, rows: Tensor) -> None:
        """Forget all learners but those in ``rows``."""
        for name in ("beta", "alpha", "t", "z", "culprits", "withheld", "first"):
            setattr(self, name, getattr(self, name)[rows])
        self.state = {k: v[rows] for k, v in self.state.items()}

    def update(self, eta: Any, low: Any, high: Any, keep: Tensor | None) -> None:
        """One meta update by z, of the blocks to keep (R, B), or all; see `meta_update`."""
        if self.rule is None:
            return
        t, z = self.t + 1, self.z.to(self.beta.dtype)
        meta_update(self.rule, z, self.beta, self.state, t, eta, low, high, keep)
        put(self.t, t, keep)
        self.show()

    def show(self) -> None:
        """alpha <- exp(beta)."""
        torch.exp(self.beta, out=self.alpha)

    def note_withheld(self, ok: Tensor) -> None:
        """Count the learners whose z is not finite, ``ok`` (R,); without synchronising."""
        first = ~ok & (self.first == NEVER)
        self.withheld += ~ok
        self.first.copy_(torch.where(first, self.calls - 1, self.first))
        bad = ~torch.isfinite(self.z)
        self.culprits.copy_(torch.where(first[:, None], bad, self.culprits))

    def check_finite(self, names: Sequence[str], row: int = 0) -> None:
        """Raise NonFiniteError if a learner's update was withheld; reads from the device."""
        step = int(self.first[row])
        if step == NEVER:
            return
        culprits = self.culprits[row].tolist()
        blocks = [name for name, bad in zip(names, culprits, strict=False) if bad]
        raise NonFiniteError(
            f"step {step}: gradient or meta-gradient not finite in block "
            f"{', '.join(repr(b) for b in blocks)}; the update was withheld "
            f"({int(self.withheld[row])} in all). Lower alpha0 or eta, bound step sizes with "
            "alpha_max, clip gradients, or pass nonfinite='skip' to skip and count such steps"
        )

    def state_dict(self, row: int = 0) -> dict[str, Any]:
        """One learner's entries: tensors only, all copies."""
        saved = self.BLOCKS | self.LEARNERS
        out: dict[str, Any] = {k: getattr(self, name)[row].clone() for name, k in saved.items()}
        out["calls"] = self.calls.clone()
        out["state"] = {k: v[row].clone() for k, v in self.state.items()}
        return out

    def load_state_dict(self, saved: dict[str, Any], row: int = 0) -> None:
        """Take over copies of a learner's saved tensors, in place."""
        for name, key in (self.BLOCKS | self.LEARNERS).items():
            getattr(self, name)[row] = saved[key]
        self.calls.copy_(saved["calls"])
        self.show()
        for key, value in saved["state"].items():
            self.state[key][row] = value
