"""The batched network and optimiser of some learners: one call is one step of all."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from clmeta.engines.device_steps import DeviceSteps
from clmeta.engines.fuse import CannotCompile
from clmeta.engines.gradient import Gradient
from clmeta.engines.native_fine_steps import NativeFineSteps, fine_moves_for
from clmeta.engines.native_steps import NativeSteps, moves_for
from clmeta.engines.stacked import Stacked
from clmeta.engines.stacked_fine import FineSteps
from clmeta.engines.tiles import Tiles
from clmeta.native.expression import CannotTrace, trace_rule
from clmeta.replicas.lockstep import Segment
from clmeta.replicas.network import BatchedNetwork, NotBatchable
from clmeta.rules import Rule
from clmeta.runs.runner import Prepared

Results = tuple[Tensor, Tensor, Tensor]


class ReplicaWarning(UserWarning):
    """Some runs go a slower way than they could."""


def rules_of(prepared: Prepared) -> tuple[Rule | None, Rule | None]:
    """Base and meta rule; the base is None if it is a wrapped torch optimiser."""
    return getattr(prepared.optimizer._path, "rule", None), prepared.optimizer.sizes.rule


def learnt_names(prepared: Prepared) -> list[str]:
    """The parameters that get a gradient, by one backward pass; others are never updated.

    Raises:
        NotBatchable: for a network with buffers, which learners would share.
    """
    model, stream = prepared.model, prepared.stream
    if any(True for _ in model.buffers()):
        raise NotBatchable("it has buffers, such as those of batch normalisation")
    x = torch.zeros(stream.batch_size, *stream.input_shape, device=prepared.optimizer.alpha.device)
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    grads = torch.autograd.grad(model(x).sum(), [p for _, p in named], allow_unused=True)
    return [name for (name, _), g in zip(named, grads, strict=True) if g is not None]


def _require_formula(level: str, rule: Rule | None) -> None:
    """Refuse a rule that is more than a formula of one number: it would mix the learners'."""
    try:
        if rule is not None:
            trace_rule(rule)
    except CannotTrace as reason:
        raise NotBatchable(f"its {level} rule {type(rule).__name__} {reason}") from reason


class Program:
    """R learners that share network and rules.

    Args:
        prepared: the learners, none of which has learnt anything.
        compiled: compile the optimiser's part, if there is a compiler.

    Raises:
        NotBatchable: saying why the learners must run one by one.
    """

    def __init__(self, prepared: Sequence[Prepared], compiled: bool = False) -> None:
        base, meta = rules_of(prepared[0])
        if base is None:
            raise NotBatchable("its base is a torch optimiser, not a rule")
        if prepared[0].optimizer.needs_graph:
            raise NotBatchable("its trace needs second derivatives")
        for level, rule in (("base", base), ("meta", meta)):
            _require_formula(level, rule)
        names = learnt_names(prepared[0])
        if any(learnt_names(p) != names for p in prepared[1:]):
            raise NotBatchable("which of its parameters are learnt differs between runs")
        named = [dict(p.model.named_parameters()) for p in prepared]
        fixed = {
            name: torch.stack([each[name].detach() for each in named])
            for name in named[0]
            if name not in names
        }
        self.network = BatchedNetwork(prepared[0].model, names, fixed)
        params = [[each[name] for name in names] for each in named]
        weights = [torch.stack([p.detach() for p in each]) for each in zip(*params, strict=True)]
        self.stacked = Stacked([p.optimizer for p in prepared], weights, params, base, meta)
        self.on_cpu = weights[0].device.type == "cpu"
        self.fine = self._fine() if self.stacked.granularity else None
        self.steps: Any = self.fine or self._whole(compiled)
        self._graph: Callable[[Tensor, Tensor], Results] | None = None
        self._shape: torch.Size | None = None

    def _fine(self) -> FineSteps:
        """What steps learners with a step size per unit or weight."""
        moves = fine_moves_for(self.stacked) if self.on_cpu else None
        return FineSteps(self.stacked) if moves is None else NativeFineSteps(self.stacked, moves)

    def _whole(self, compiled: bool) -> Any:
        """What steps blocks of whole tensors: C, a compiled program, or torch's operations."""
        moves = moves_for(self.stacked) if self.on_cpu else None
        if moves is not None:
            return NativeSteps(self.stacked, moves)
        can = compiled and (not self.on_cpu or bool(shutil.which("g++") or shutil.which("cl")))
        if can or not self.on_cpu:
            return DeviceSteps(self.stacked, can)
        return Tiles(self.stacked)

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with the learners in ``rows`` only."""
        self.network.keep(rows)
        self.stacked.keep(rows)
        if self.fine:
            self.fine.keep(rows)
        self.steps.build()
        self._graph = None

    def tensors(self) -> list[Tensor]:
        """Everything that a step changes."""
        return self.stacked.tensors() + (self.fine.tensors() if self.fine else [])

    def gradients(self, x: Tensor, y: Tensor) -> tuple[list[Gradient], Tensor, Tensor]:
        """Gradients, losses (R,) and shares right (R,) at the present weights."""
        return self.network(self.stacked.w, x, y)

    def step(self, x: Tensor, y: Tensor) -> Results:
        """One step of all: losses, shares right before it, and the step sizes (R, B) it used."""
        grads, loss, share = self.gradients(x, y)
        alpha = self.stacked.alpha.clone()
        try:
            self.steps.step(grads)
        except CannotCompile as error:
            warnings.warn(f"torch.compile: {error}; going on without", ReplicaWarning, stacklevel=2)
            self.steps = Tiles(self.stacked) if self.on_cpu else DeviceSteps(self.stacked)
            self.steps.step(grads)
        return loss, share, alpha

    def run(self, segment: Segment) -> Results:
        """All steps of a segment: losses and shares (steps, R), step sizes (steps, R, B)."""
        step = self.step if self.on_cpu else self._captured(segment.x[0], segment.y[0])
        rows = [step(x, y) for x, y in zip(segment.x, segment.y, strict=True)]
        losses, shares, alphas = (torch.stack(each) for each in zip(*rows, strict=True))
        return losses, shares, alphas

    def _captured(self, x: Tensor, y: Tensor) -> Callable[[Tensor, Tensor], Results]:
        """`step` as a CUDA graph for inputs of this shape, or as it is if it can't be captured."""
        if self._graph is None or self._shape != x.shape:
            self._shape = x.shape
            try:
                self._graph = capture(self.step, x, y, self.tensors())
            except RuntimeError as error:
                line = str(error).strip().splitlines()[0]
                text = f"CUDA graph: {line}; going on without"
                warnings.warn(text, ReplicaWarning, stacklevel=2)
                self._graph = self.step
        return self._graph


def capture(
    step: Callable[[Tensor, Tensor], Results], x: Tensor, y: Tensor, changed: Sequence[Tensor]
) -> Callable[[Tensor, Tensor], Results]:
    """``step`` captured into a CUDA graph; what warming up ``changed`` is put back.

    Args:
        step: reads and changes tensors in place, without synchronising.
        x, y: inputs of the shapes that all calls will have.
        changed: every tensor that ``step`` changes.
    """
    saved = [tensor.clone() for tensor in changed]
    x, y = x.clone(), y.clone()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step(x, y)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = step(x, y)
    for tensor, value in zip(changed, saved, strict=True):
        tensor.copy_(value)

    def replay(new_x: Tensor, new_y: Tensor) -> Results:
        x.copy_(new_x)
        y.copy_(new_y)
        graph.replay()
        loss, share, alpha = (each.clone() for each in out)
        return loss, share, alpha

    return replay
