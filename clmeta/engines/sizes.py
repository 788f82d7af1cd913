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


def are_finite(*xs: Tensor) -> bool:
    """Whether sums, and so all numbers, are finite; reads from the device."""
    return all(math.isfinite(x.sum()) for x in xs)


def put(pairs: Sequence[tuple[Tensor, Tensor]], ok: Tensor | None) -> Tensor | None:
    """``old <- new`` in place for each number where ok and all that is new of it is finite.

    Tensors keep their places, as a CUDA graph replays writes, not new names for them.

    Args:
        pairs: the old and the new array for each of some arrays of one shape.
        ok: where to write, broadcast; None for everywhere, and values may be read.

    Returns:
        Where something was kept back, as it is not finite; None where that is known to be nowhere.
    """
    pairs = [(old, new.to(old.dtype)) for old, new in pairs]
    if ok is None and are_finite(*(new for _, new in pairs)):
        for old, new in pairs:
            old.copy_(new)
        return None
    zero = pairs[0][1] * 0
    for _, new in pairs[1:]:
        zero = torch.add(zero, new, alpha=0)
    good = zero == 0  # as 0 times what is not finite is not a number
    chosen = good if ok is None else good & ok
    for old, new in pairs:
        torch.where(chosen, new, old, out=old)
    return ~good if ok is None else ok & ~good


def blend(old: Tensor, scale: Any, x: Tensor, a: float, out: Tensor | None = None) -> Tensor:
    """``scale old + a x``; scale is a number or broadcast."""
    if isinstance(scale, Tensor) or scale != 1.0:
        old = torch.mul(old, scale, out=out)
    return torch.add(old, x, alpha=a, out=out)


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
) -> Tensor | None:
    """``beta <- beta - eta u(z)`` within bounds, in place where ok (paper, Sec. 3, eq. 7).

    Args:
        rule: the meta update.
        z: meta-gradients, in the shape of ``beta`` and ``state``.
        t: number of this update, from 1; a tensor.
        eta, low, high: meta step size and bounds of beta, broadcast.

    Returns:
        Where they were kept back, as `put` says.
    """
    u, after = rule.update(z, state, t)
    moved = torch.clamp(beta - eta * u, low, high)
    return put([(beta, moved), *((old, after[name]) for name, old in state.items())], ok)


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
        withheld, first: (R,) number of steps of which anything was withheld, as it was not finite,
            and the first of them (-1: none).
        culprits: (R, B) blocks in which that was at the first one.
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

    def update(self, eta: Any, low: Any, high: Any, keep: Tensor | None) -> Tensor | None:
        """One meta update by z, of the blocks to keep (R, B), or all; see `meta_update`."""
        if self.rule is None:
            return None
        t, z = self.t + 1, self.z.to(self.beta.dtype)
        held = meta_update(self.rule, z, self.beta, self.state, t, eta, low, high, keep)
        moved = keep if held is None else ~held if keep is None else keep & ~held
        put([(self.t, t)], moved)
        self.show()
        return held

    def show(self) -> None:
        """alpha <- exp(beta)."""
        torch.exp(self.beta, out=self.alpha)

    def note_withheld(self, held: Tensor) -> None:
        """Count the learners of which something was kept back: blocks ``held`` (R, B).

        It is called once a step at most, and does not synchronise.
        """
        some = held.any(1)
        first = some & (self.first == NEVER)
        self.withheld += some
        self.first.copy_(torch.where(first, self.calls - 1, self.first))
        self.culprits.copy_(torch.where(first[:, None], held, self.culprits))

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
