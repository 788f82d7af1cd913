"""The compiled path: a whole step as one program, each array read once and written once.

Step sizes, decays and counts enter as tensors, so nothing is compiled again as they change. Nothing
is read back from the device, and all changes are in place, as CUDA graphs need.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from clmeta.engines.fuse import CannotCompile, Fused
from clmeta.engines.lists import usable_grad
from clmeta.engines.masked import MaskedPath
from clmeta.engines.native import NativePath
from clmeta.engines.stepsizes import meta_changes
from clmeta.rules import Rule

if TYPE_CHECKING:
    from clmeta.optim.optimizer import MetaOptimize


class CompileWarning(UserWarning):
    """torch.compile does not work here; the optimiser goes on without it."""


@dataclass
class _Set:
    """What is compiled for one set of parameters that have gradients."""

    program: Fused
    numbers: tuple[float, ...]
    tensors: tuple[Tensor, Tensor, Tensor]


class CompiledPath(MaskedPath):
    """`MaskedPath` through ``torch.compile``; blocks finer than tensors go its way."""

    remade = ("sets",)

    def __init__(self, optimizer: MetaOptimize, rule: Rule, granularity: str | None) -> None:
        super().__init__(optimizer, rule, granularity)
        self.sets: dict[tuple[Any, ...], _Set] = {}

    def step(self) -> None:
        """One update of every block with a gradient."""
        if self.granularity:
            super().step()
            return
        groups = self.optimizer.param_groups
        members = [
            (i, p, usable_grad(p), self._state(p, group["alpha0"]))
            for i, group in enumerate(groups)
            for p in group["params"]
            if p.grad is not None
        ]
        if not members:
            return
        key = tuple((i, p, g.dtype, g.stride()) for i, p, g, _ in members)
        found = self.sets.get(key)
        numbers = tuple(g[name] for name in ("gamma", "weight_decay", "eta") for g in groups)
        if found is None or found.numbers != numbers:
            tensors = self._numbers(numbers)
            program = found.program if found else self._compile(members, tensors)
            if program is None:
                self._give_up()
                return
            found = self.sets[key] = _Set(program, numbers, tensors)
        found.program(*self._arguments(members, found.tensors))

    def _numbers(self, numbers: tuple[float, ...]) -> tuple[Tensor, Tensor, Tensor]:
        beta = self.optimizer.sizes.beta
        gamma, kappa, eta = beta.new_tensor(numbers).view(3, -1).unbind()
        return gamma, kappa, eta

    def _arguments(
        self, members: list[Any], numbers: tuple[Tensor, Tensor, Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """What the program takes: tensors of one number or one a block, then all others."""
        sizes = self.optimizer.sizes
        scalars = [sizes.alpha, sizes.t, *numbers, *(state["step"] for *_, state in members)]
        arrays = [sizes.beta, sizes.culprits, sizes.calls, sizes.withheld, sizes.first_withheld]
        arrays += sizes.state.values()
        for _, p, g, state in members:
            arrays += [p.detach(), g, *(state[name] for name in self._names())]
        return scalars, arrays

    def _names(self) -> tuple[str, ...]:
        adaptive = self.optimizer.sizes.rule is not None
        return (*self.rule.slots, *(("h",) if adaptive else ()))

    def _compile(self, members: list[Any], numbers: tuple[Tensor, Tensor, Tensor]) -> Fused | None:
        """The program, or None and a warning."""
        owner = torch.tensor([i for i, *_ in members], device=self.optimizer.sizes.beta.device)

        def program(*flat: Tensor) -> list[Tensor]:
            alpha, t, gamma, kappa, eta = flat[:5]
            steps, rest = flat[5 : 5 + len(members)], list(flat[5 + len(members) :])
            beta, culprits, *counts = rest[:5]
            width, at = 2 + len(self._names()), 5 + len(self.optimizer.sizes.state)
            meta_state = dict(zip(self.optimizer.sizes.state, rest[5:at], strict=True))
            packs = [rest[i : i + width] for i in range(at, len(rest), width)]
            self._program(
                owner,
                (alpha, beta, t, culprits),
                counts,
                (gamma, kappa, eta),
                steps,
                meta_state,
                packs,
            )
            return []

        try:
            return Fused(program, *self._arguments(members, numbers))
        except CannotCompile as error:
            text = f"compile=True: {error}; going on without"
            warnings.warn(text, CompileWarning, stacklevel=6)
            return None

    def _give_up(self) -> None:
        """Go the uncompiled way from this step on."""
        optimizer = self.optimizer
        on_cpu = optimizer.sizes.beta.device.type == "cpu"
        optimizer._path = (
            NativePath(optimizer, self.rule) if on_cpu else MaskedPath(optimizer, self.rule, None)
        )
        optimizer._path.step()

    def _program(
        self,
        owner: Tensor,
        vectors: tuple[Tensor, Tensor, Tensor, Tensor],
        counts: Sequence[Tensor],
        numbers: tuple[Tensor, Tensor, Tensor],
        steps: Sequence[Tensor],
        meta_state: dict[str, Tensor],
        packs: Sequence[list[Tensor]],
    ) -> None:
        """The step that `MaskedPath` makes, with z of all blocks and the meta update."""
        meta = self.optimizer.sizes.rule
        alpha, beta, t, culprits = vectors
        calls, withheld, first = counts
        gamma, kappa, eta = numbers
        products = [pack[-1] * pack[1] if meta is not None else pack[1] for pack in packs]
        parts = torch.stack([x.sum().to(beta.dtype) for x in products])
        z = torch.zeros_like(beta).index_add(0, owner, parts)
        ok = torch.isfinite(z).all()
        is_first = ~ok & (first < 0)
        culprits.copy_(torch.where(is_first, ~torch.isfinite(z), culprits))
        first.copy_(torch.where(is_first, calls - 1, first))
        withheld.add_(~ok)
        a_of = alpha[owner]
        decay_of = gamma[owner] * (1 - a_of * kappa[owner])
        shrink_of = a_of * kappa[owner]
        for i, (w, g, *state) in enumerate(packs):
            names = self._names()
            now = dict(zip(names, state, strict=True))
            dtype = steps[i].dtype
            count = steps[i] + 1
            old = {name: now[name] for name in self.rule.slots}
            u, new = self.rule.update(g, old, count)
            dw = -(a_of[i].to(dtype) * u) - shrink_of[i].to(dtype) * w
            changes = [(old[name], new[name]) for name in old]
            changes += [(w, w + dw), (steps[i], count)]
            if meta is not None:
                changes.append((now["h"], decay_of[i].to(dtype) * now["h"] + dw))
            values = [torch.where(ok, after.to(before.dtype), before) for before, after in changes]
            for (before, _), value in zip(changes, values, strict=True):
                before.copy_(value)
        if meta is None:
            return
        keep = torch.zeros_like(culprits).index_fill(0, owner, True) & ok
        low, high = self.optimizer.beta_bounds(self.optimizer.param_groups[0])
        changes = meta_changes(meta, z, beta, meta_state, t + 1, eta, low, high)
        for before, after in (*changes, (t, t + 1)):
            before.copy_(torch.where(keep, after, before))
        alpha.copy_(beta.exp())
