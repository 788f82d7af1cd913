"""The CPU path: whole blocks in place, a cache-sized batch of tensors at a time."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from clmeta.engines.path import Path
from clmeta.errors import bad
from clmeta.rules import Rule

if TYPE_CHECKING:
    from clmeta.optim.optimizer import MetaOptimize

#: Numbers per batch: five arrays of them fit a core's second-level cache.
BATCH = 65_536


def state_dtype(p: Tensor) -> torch.dtype:
    """State is kept in float32 for half-precision weights."""
    return torch.float32 if p.dtype.itemsize < 4 else p.dtype


def usable_grad(p: Tensor) -> Tensor:
    """The gradient, in the dtype of the state; refuses what cannot be updated."""
    g = p.grad
    assert g is not None
    if g.layout is not torch.strided:
        bad("gradient", str(g.layout), "MetaOptimize needs dense gradients; pass sparse=False")
    return g if p.dtype.itemsize >= 4 else g.float()


class Slot:
    """One parameter's weights, trace and rule state, cut into batch-sized pieces."""

    def __init__(self, p: Tensor, state: dict[str, Any], names: tuple[str, ...]) -> None:
        self.p, self.state, self.pointer = p, state, p.data_ptr()
        self.flat = p.is_contiguous()
        if self.flat:
            for name in names:
                state[name] = state[name].contiguous()
        self.tensors = [state[name] for name in names]
        self.names = names
        self.w = self.cut(p.detach())
        self.pieces = {name: self.cut(state[name]) for name in names}

    def cut(self, x: Tensor) -> list[Tensor]:
        """A tensor of the parameter's shape as 1-D pieces (whole, if not contiguous)."""
        if not self.flat:
            return [x]
        x = x.reshape(-1)
        return list(x.split(BATCH)) if x.numel() > BATCH else [x]

    def valid(self, state: dict[str, Any]) -> bool:
        """Whether weights and state are still the tensors that were cut."""
        if state is not self.state or self.p.data_ptr() != self.pointer:
            return False
        for name, x in zip(self.names, self.tensors, strict=True):  # noqa: SIM110, all() is slower
            if state.get(name) is not x:
                return False
        return True


class Batch:
    """Consecutive pieces of one block that have had the same number of updates."""

    def __init__(self, state: dict[str, Any], names: tuple[str, ...]) -> None:
        self.counter = state
        self.w: list[Tensor] = []
        self.parts: dict[str, list[Tensor]] = {name: [] for name in names}
        self.size = 0


class Block:
    """The batches of one block for one set of parameters that have gradients."""

    def __init__(self, slots: list[Slot], names: tuple[str, ...]) -> None:
        self.slots = slots
        self.batches: list[Batch] = []
        self.h: list[Tensor] = []
        for slot in slots:
            for i, w in enumerate(slot.w):
                batch = self.batches[-1] if self.batches else None
                if (
                    batch is None
                    or batch.size + w.numel() > BATCH
                    or batch.counter["step"] != slot.state["step"]
                ):
                    batch = Batch(slot.state, names)
                    self.batches.append(batch)
                batch.w.append(w)
                batch.size += w.numel()
                for name in names:
                    batch.parts[name].append(slot.pieces[name][i])
            self.h += slot.pieces.get("h", [])


class ListPath(Path):
    """Steps of all blocks on the CPU with ``torch._foreach`` calls (equations.md, section 4)."""

    remade: tuple[str, ...] = ("slots", "blocks")

    def __init__(self, optimizer: MetaOptimize, rule: Rule) -> None:
        super().__init__(optimizer)
        self.rule = rule
        self.slots: dict[Tensor, Slot] = {}
        self.blocks: dict[int, Block] = {}

    def _slot(self, p: Tensor, names: tuple[str, ...]) -> Slot:
        state = self.optimizer.state[p]
        slot = self.slots.get(p)
        if slot is not None and slot.valid(state):
            return slot
        if "step" not in state:
            like = torch.zeros_like(
                p, dtype=state_dtype(p), memory_format=torch.preserve_format
            ).detach()
            state.update(step=0, **self.rule.init(like))
        elif isinstance(state["step"], Tensor):  # from a checkpoint made on an accelerator
            state["step"] = int(state["step"])
        if "h" in names and "h" not in state:
            state["h"] = torch.zeros_like(p, dtype=state_dtype(p)).detach()
        if slot is None:
            held = {p for group in self.optimizer.param_groups for p in group["params"]}
            self.slots = {p: slot for p, slot in self.slots.items() if p in held}
        slot = self.slots[p] = Slot(p, state, names)
        return slot

    def _block(self, index: int, slots: list[Slot], names: tuple[str, ...]) -> Block:
        block = self.blocks.get(index)
        if block is None or block.slots != slots:
            block = self.blocks[index] = Block(slots, names)
        return block

    def step(self) -> None:
        """One update of every block with a gradient."""
        sizes = self.optimizer.sizes
        adaptive = sizes.rule is not None
        names = (*self.rule.slots, "h") if adaptive else self.rule.slots
        active: list[tuple[int, dict[str, Any], Block, list[Tensor]]] = []
        parts: list[Tensor] = []
        counts: list[int] = []
        for i, group in enumerate(self.optimizer.param_groups):
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            slots = [self._slot(p, names) for p in params]
            grads = [x for slot in slots for x in slot.cut(usable_grad(slot.p))]
            block = self._block(i, slots, names)
            active.append((i, group, block, grads))
            if adaptive:
                parts += [
                    torch.dot(h, g) if h.dim() == 1 and g.dim() == 1 else (h * g).sum()
                    for h, g in zip(block.h, grads, strict=True)
                ]
            else:
                parts += [g.sum() for g in grads]
            counts.append(len(grads))
        if not active:
            return
        # The sum of <h, g> is finite only if every gradient is: 0 * inf is not a number.
        values = iter(torch.stack([x.to(sizes.beta.dtype) for x in parts]).tolist())
        sums = [math.fsum(_safe(next(values) for _ in range(count))) for count in counts]
        z = [0.0] * len(sizes)
        for (i, *_), total in zip(active, sums, strict=True):
            z[i] = total
        if not all(map(math.isfinite, sums)):
            sizes.note_withheld(torch.tensor(z, dtype=sizes.beta.dtype), torch.tensor(True))
            return
        alphas = sizes.alpha.tolist()
        for i, group, block, grads in active:
            self._move(block, grads, alphas[i], group["gamma"], group["weight_decay"], adaptive)
        if adaptive:
            self.meta_update(torch.tensor(z, dtype=sizes.beta.dtype), [i for i, *_ in active])

    def _move(
        self,
        block: Block,
        grads: list[Tensor],
        alpha: float,
        gamma: float,
        kappa: float,
        adaptive: bool,
    ) -> None:
        """dw = -alpha (u + kappa w); w <- w + dw; h <- gamma (1 - alpha kappa) h + dw."""
        at = 0
        decay = gamma * (1 - alpha * kappa)
        for batch in block.batches:
            g = grads[at : at + len(batch.w)]
            at += len(batch.w)
            u = self._direction(batch, g)
            if kappa and (u is g or any(u is part for part in batch.parts.values())):
                u = torch._foreach_add(u, batch.w, alpha=kappa)
            elif kappa:  # in place: one array less in the cache
                torch._foreach_add_(u, batch.w, alpha=kappa)
            torch._foreach_add_(batch.w, u, alpha=-alpha)
            if adaptive:
                h = batch.parts["h"]
                if decay != 1.0:
                    torch._foreach_mul_(h, decay)
                torch._foreach_add_(h, u, alpha=-alpha)
        for slot in block.slots:
            slot.state["step"] += 1

    def _direction(self, batch: Batch, g: list[Tensor]) -> Any:
        t = batch.counter["step"] + 1
        if self.rule.foreach:
            return self.rule.update(g, batch.parts, t)[0]
        directions = []
        for i, each in enumerate(g):
            state = {name: batch.parts[name][i] for name in self.rule.slots}
            u, new = self.rule.update(each, state, t)
            if u is each or any(u is old for old in state.values()):
                u = u.clone()
            for name, old in state.items():
                if new[name] is not old:
                    old.copy_(new[name])
            directions.append(u)
        return directions


def _safe(values: Any) -> Any:
    """fsum raises on inf - inf; a single NaN stands for anything that is not finite."""
    out = list(values)
    return out if all(map(math.isfinite, out)) else [math.nan]
