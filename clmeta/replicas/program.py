"""The batched network and optimiser of some learners: one call is one step of all."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from clmeta.engines.choose import AUTO, engines_for
from clmeta.engines.compiled import Compiled
from clmeta.engines.eager import Eager
from clmeta.engines.gradient import Gradient
from clmeta.engines.learners import Engine
from clmeta.engines.native import Native
from clmeta.native.trace import is_formula
from clmeta.replicas.lockstep import Segment
from clmeta.replicas.network import BatchedNetwork, NotBatchable
from clmeta.replicas.stack import stack
from clmeta.rules import Rule
from clmeta.runs.prepared import Prepared

Results = tuple[Tensor, Tensor, Tensor]


class ReplicaWarning(UserWarning):
    """Some runs go a slower way than they could."""


def rules_of(prepared: Prepared) -> tuple[Rule | None, Rule | None]:
    """Base and meta rule; the base is None if it is a wrapped torch optimiser."""
    return prepared.optimizer.base_rule, prepared.optimizer.meta_rule


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
    reason = is_formula(rule) if rule is not None else None
    if reason:
        raise NotBatchable(f"its {level} rule {type(rule).__name__} {reason}")


class Program:
    """R learners that share network and rules.

    Args:
        prepared: the learners, none of which has learnt anything.
        engine: what makes the optimiser's part of a step, as in `MetaOptimize`; "auto" also stands
            for torch.compile's, where ``compiled`` says that compiling pays and no C can be had.

    Raises:
        NotBatchable: saying why the learners must run one by one.
    """

    def __init__(
        self, prepared: Sequence[Prepared], engine: str = AUTO, compiled: bool = False
    ) -> None:
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
        optimizers = [p.optimizer for p in prepared]
        self.block_names = [o.block_names for o in optimizers]
        self.learners = stack(optimizers, weights, params)
        self.engines = self._engines(engine, compiled)
        self._graph: Callable[[Tensor, Tensor], Results] | None = None
        self._shape: torch.Size | None = None

    def _engines(self, engine: str, compiled: bool) -> list[Engine]:
        """The ways to step, the first that can do it first."""
        on_cpu, s = self.learners.on_cpu, self.learners
        if engine != AUTO:
            w = s.w[0]
            return engines_for(engine, s.base, s.meta, s.granularity, w.device, w.dtype)
        can = compiled and (not on_cpu or bool(shutil.which("g++") or shutil.which("cl")))
        engines: list[Engine] = [Native()] if on_cpu else []
        return [*engines, *([Compiled()] if can else []), Eager()]

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with the learners in ``rows`` only."""
        self.network.keep(rows)
        self.learners = self.learners.keep(rows)
        self.block_names = [self.block_names[r] for r in rows]
        self._graph = None

    def step_sizes(self, row: int) -> dict[str, float]:
        """Block name to alpha of one learner."""
        names = self.block_names[row]
        return dict(zip(names, self.learners.sizes.alpha[row].tolist(), strict=False))

    def withheld(self, row: int) -> int:
        """Number of one learner's updates that were withheld."""
        return int(self.learners.sizes.withheld[row])

    def check_finite(self, row: int) -> None:
        """Raise what the optimiser itself would raise after a withheld update."""
        self.learners.sizes.check_finite(self.block_names[row], row)

    def gradients(self, x: Tensor, y: Tensor) -> tuple[list[Gradient], Tensor, Tensor]:
        """Gradients, losses (R,) and shares right (R,) at the present weights."""
        return self.network(self.learners.w, x, y)

    def step(self, x: Tensor, y: Tensor) -> Results:
        """One step of all: losses, shares right before it, and the step sizes (R, B) it used."""
        grads, loss, share = self.gradients(x, y)
        alpha = self.learners.sizes.alpha.clone()
        self.update(grads)
        return loss, share, alpha

    def update(self, grads: Sequence[Gradient]) -> None:
        """The optimiser's part of a step."""
        self.learners.sizes.calls += 1
        while not self.engines[0].step(self.learners, grads):
            engine = self.engines.pop(0)
            if not self.engines:
                raise NotBatchable(engine.why_not)
            if isinstance(engine, Compiled):
                text = f"{engine.why_not}; going on without"
                warnings.warn(text, ReplicaWarning, stacklevel=2)

    def run(self, segment: Segment) -> Results:
        """All steps of a segment: losses and shares (steps, R), step sizes (steps, R, B)."""
        step = self.step if self.learners.on_cpu else self._captured(segment.x[0], segment.y[0])
        rows = [step(x, y) for x, y in zip(segment.x, segment.y, strict=True)]
        losses, shares, alphas = (torch.stack(each) for each in zip(*rows, strict=True))
        return losses, shares, alphas

    def _captured(self, x: Tensor, y: Tensor) -> Callable[[Tensor, Tensor], Results]:
        """`step` as a CUDA graph for inputs of this shape, or as it is if it can't be captured."""
        if self._graph is None or self._shape != x.shape:
            self._shape = x.shape
            try:
                self._graph = capture(self.step, x, y, self.learners.tensors())
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
