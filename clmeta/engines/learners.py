"""What engines step: R learners with the same tensors, a MetaOptimize being R = 1."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from clmeta.blocks import fine_shape
from clmeta.engines.gradient import Gradient
from clmeta.engines.sizes import StepSizes, state_dtype
from clmeta.ground.shards import Shards
from clmeta.rules import Rule


class Numbers(NamedTuple):
    """Settings of every block: (R, B) each, in double precision where the device has it."""

    eta: Tensor
    gamma: Tensor
    kappa: Tensor
    low: Tensor
    high: Tensor


@dataclass
class Learners:
    """R learners that share P tensors' shapes and both rules; arrays are views of their owner's.

    Attributes:
        base, meta: the rules; meta is None for fixed step sizes.
        granularity: ``"node"`` or ``"weight"``, or None where blocks are whole tensors.
        sizes: step sizes and meta state of the (R, B) blocks.
        numbers: settings of the blocks.
        w, h: for each tensor, weights and trace (R, *shape); h is empty for fixed step sizes.
        slots: the base rule's state, slot name to such a list.
        steps: for each tensor, int64 (R,), the number of its updates.
        block: int64 (R, P), the block of each tensor.
        active: bool (R, B), the blocks that have any of these tensors.
        fine: with a granularity, for each tensor beta and the meta rule's state by its slots'
            names, each (R, *fine_shape).
        leaves: what autograd knows the weights as, where it does.
        shards: how sums go over processes; None where all tensors are whole.
    """

    base: Rule
    meta: Rule | None
    granularity: str | None
    sizes: StepSizes
    numbers: Numbers
    w: list[Tensor]
    h: list[Tensor]
    slots: dict[str, list[Tensor]]
    steps: list[Tensor]
    block: Tensor
    active: Tensor
    fine: list[dict[str, Tensor]] = field(default_factory=list)
    leaves: Sequence[Tensor] = ()
    shards: Shards | None = None
    _complete: bool | None = None

    def __len__(self) -> int:
        return len(self.sizes)

    @property
    def on_cpu(self) -> bool:
        """Whether reading a value waits for nothing."""
        return self.sizes.beta.device.type == "cpu"

    def tensors(self) -> list[Tensor]:
        """Everything that a step changes."""
        slots = (x for xs in self.slots.values() for x in xs)
        fine = (x for each in self.fine for x in each.values())
        return [*self.w, *self.h, *slots, *self.steps, *fine, *self.sizes.tensors()]

    def keep(self, rows: Sequence[int]) -> Learners:
        """The learners in ``rows`` alone; these must not be stepped any more."""
        index = torch.tensor(rows, device=self.block.device)
        self.sizes.keep(index)
        return replace(
            self,
            numbers=Numbers(*(x[index] for x in self.numbers)),
            w=[x[index] for x in self.w],
            h=[x[index] for x in self.h],
            slots={name: [x[index] for x in xs] for name, xs in self.slots.items()},
            steps=[x[index] for x in self.steps],
            block=self.block[index],
            active=self.active[index],
            fine=[{name: x[index] for name, x in each.items()} for each in self.fine],
        )

    def meta_update(self, ok: Tensor | None) -> Tensor | None:
        """beta <- meta_update(beta, z) of blocks of whole tensors, of learners ok (R,), or all.

        Returns:
            (R, B) the blocks that were kept back, as `put` says.
        """
        keep: Tensor | None = self.active if ok is None else self.active & ok[:, None]
        if ok is None and self._complete is None:
            self._complete = self.on_cpu and bool(self.active.all())
        keep = None if ok is None and self._complete else keep
        n, dtype = self.numbers, self.sizes.beta.dtype
        return self.sizes.update(n.eta.to(dtype), n.low.to(dtype), n.high.to(dtype), keep)

    def show_fine(self) -> None:
        """Each block's beta: the mean over its units or weights, so alpha's geometric mean."""
        counts = [each["beta"][0].numel() for each in self.fine]
        counts = self.shards.sizes if self.shards is not None else counts
        filled = [i for i, count in enumerate(counts) if count]
        if not filled or self.meta is None:
            return
        beta, block = self.sizes.beta, self.block[:, filled]
        if self.shards is None:
            means = [self.fine[i]["beta"].reshape(len(self), -1).mean(1) for i in filled]
            values = torch.stack([mean.to(beta) for mean in means], 1)
        else:
            sums = torch.stack([each["beta"].sum().to(beta) for each in self.fine])
            values = self.shards.total_units(sums) / sums.new_tensor(counts)
            values = values[None, filled]
        total = torch.zeros_like(beta).scatter_add_(1, block, values)
        count = torch.zeros_like(beta).scatter_add_(1, block, torch.ones_like(values))
        # A mean of finite numbers is finite, though their sum may not be.
        beta.copy_(torch.where(count > 0, torch.nan_to_num(total / count), beta))
        self.sizes.show()


def fresh_learners(
    base: Rule,
    meta: Rule | None,
    granularity: str | None,
    w: list[Tensor],
    beta: Tensor,
    block: Tensor,
    numbers: Numbers,
) -> Learners:
    """Learners that have not learnt anything: state at zero, step sizes at exp(beta).

    Args:
        w: for each tensor, the learners' weights (R, *shape).
        beta: (R, B); block: (R, P), the block of each tensor.
    """
    like = [torch.zeros_like(x, dtype=state_dtype(x)) for x in w]
    slots = {name: [base.init(x)[name] for x in like] for name in base.slots}
    fine: list[dict[str, Tensor]] = []
    for i, x in enumerate(w if granularity else ()):
        shape = (len(x), *fine_shape(x[0], granularity or ""))
        own = beta.gather(1, block[:, i : i + 1]).view((-1,) + (1,) * (len(shape) - 1))
        start = own.to(like[i].dtype).expand(shape).clone()
        fine.append({"beta": start, **(meta.init(start) if meta is not None else {})})
    return Learners(
        base,
        meta,
        granularity,
        StepSizes(meta, beta),
        numbers,
        w,
        [x.clone() for x in like] if meta is not None else [],
        slots,
        [torch.zeros(len(x), dtype=torch.int64, device=x.device) for x in w],
        block,
        torch.zeros_like(beta, dtype=torch.bool).scatter_(1, block, True),
        fine,
    )


def trace_norms(
    h: Sequence[Tensor], block: Tensor, blocks: int, shards: Shards | None = None
) -> Tensor:
    """(R, B) Euclidean norms of each block's traces (R, *shape); block is (R, P)."""
    norm = torch.linalg.vector_norm
    squares = [
        norm(x.reshape(len(x), -1), dim=1, dtype=torch.float64).square().to(block.device) for x in h
    ]
    total = torch.zeros(len(block), blocks, dtype=torch.float64, device=block.device)
    if not h:
        return total
    joined = torch.stack(squares, 1)
    joined = joined if shards is None else shards.total(joined)
    return total.scatter_add_(1, block, joined).sqrt()


class Engine:
    """A way to make a step of Algorithm 3; it sees learners, never the optimiser.

    Attributes:
        needs_graph: whether gradients must come from ``backward(create_graph=True)``.
        state_names: what it keeps of each parameter beside the rule's state, in ``slots``.
        why_not: why the last step was not made.
    """

    needs_graph: bool = False
    state_names: tuple[str, ...] = ()
    why_not: str | None = None

    def step(self, learners: Learners, grads: Sequence[Gradient]) -> bool:
        """One update of all learners; False, and nothing is changed, where it can't make it.

        Args:
            learners: the same object as before, for as long as their arrays are the same.
            grads: one for each tensor, (R, *shape); for R = 1 also (*shape).
        """
        raise TypeError(f"{type(self).__name__} does not say how to step")

    def saved(self) -> dict[str, Any]:
        """What a checkpoint needs beside the optimiser's own state."""
        return {}

    def check(self, saved: Mapping[str, Any]) -> None:
        """Raise BadArgument unless `restore` can take it; changes nothing."""

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Take over what `saved` gave."""

    def make_state(self, groups: Sequence[dict[str, Any]], state: MutableMapping) -> None:
        """Make state beside that of rules, as a first step of size 0 along the gradients does."""
