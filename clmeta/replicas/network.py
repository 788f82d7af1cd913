"""A network's gradients for R learners at once, as one flat program of torch operations.

``vmap`` over ``grad`` of the plain loss is traced once for a shape of batch and then run without
``vmap`` or autograd. Convolutions become grouped ones, linear layers ``bmm``. Two rewrites of the
traced program matter at batch size one (figures in docs/speed.md): 2 x 2 max-pooling by maxima of
strided views, and gradients of linear layers kept as the two factors of their outer product.
"""

from __future__ import annotations

import operator
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from clmeta.engines.gradient import Gradient, Outer
from clmeta.replicas.pool import pool, pool_backward
from clmeta.replicas.simplify import simplify

aten = torch.ops.aten
VIEWS = (aten.view.default, aten.permute.default)


class NotBatchable(Exception):
    """Why a network's learners must run one by one."""


class BatchedNetwork:
    """Losses and gradients of R networks of one architecture, one input batch each.

    Args:
        model: the architecture; its own weights are not used.
        names: the parameters that gradients are wanted for.
        fixed: all others, one tensor (R, *shape) per name.

    Raises:
        NotBatchable: at the first call, for random layers, programs that depend on data, ...
    """

    def __init__(
        self, model: nn.Module, names: Sequence[str], fixed: Mapping[str, Tensor] | None = None
    ) -> None:
        self.model = model
        self.names = list(names)
        self.fixed = dict(fixed or {})
        self._programs: dict[tuple[Any, ...], tuple[fx.GraphModule, list[bool]]] = {}

    def keep(self, rows: Sequence[int]) -> None:
        """Forget the fixed parameters of all learners but those in ``rows``."""
        self.fixed = {name: x[list(rows)] for name, x in self.fixed.items()}

    def __call__(
        self, weights: Sequence[Tensor], x: Tensor, y: Tensor
    ) -> tuple[list[Gradient], Tensor, Tensor]:
        """Gradients, losses (R,) and shares predicted right (R,), before any update.

        Args:
            weights: one tensor (R, *shape) per name.
            x: (R, batch, C, H, W); y: (R, batch).
        """
        key = (x.shape, y.shape, x.device)
        if key not in self._programs:
            self._programs[key] = self._trace(weights, x, y)
        program, is_outer = self._programs[key]
        with torch.no_grad():
            out = list(program(list(weights), list(self.fixed.values()), x, y))
        loss, share = out[-2:]
        parts = iter(out[:-2])
        return (
            [Outer(next(parts), next(parts)) if o else next(parts) for o in is_outer],
            loss,
            share,
        )

    def _one(self, weights: list[Tensor], fixed: list[Tensor], x: Tensor, y: Tensor) -> Any:
        names = [*self.names, *self.fixed]

        def loss(values: list[Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
            named = dict(zip(names, [*values, *fixed], strict=True))
            output = functional_call(self.model, named, (x,))
            # Cross entropy, without the cases of torch's that are none here: fewer calls.
            value = -F.log_softmax(output, 1).gather(1, y[:, None]).mean()
            return value, (value, output)

        grads, (value, output) = grad(loss, has_aux=True)(weights)
        return grads, value, output.argmax(1).eq(y).to(value.dtype).mean()

    def _trace(
        self, weights: Sequence[Tensor], x: Tensor, y: Tensor
    ) -> tuple[fx.GraphModule, list[bool]]:
        from torch.fx.experimental.proxy_tensor import make_fx

        def batched(
            weights: list[Tensor], fixed: list[Tensor], x: Tensor, y: Tensor
        ) -> list[Tensor]:
            grads, loss, share = vmap(self._one)(weights, fixed, x, y)
            return [*grads, loss, share]

        try:
            with warnings.catch_warnings():
                # An operation without a batching rule would be looped over, slower than one by one.
                warnings.filterwarnings("error", message="There is a performance drop")
                program = make_fx(batched)(list(weights), list(self.fixed.values()), x, y)
        except Exception as error:
            line = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise NotBatchable(line) from error
        return program, rewrite(program)


def rewrite(program: fx.GraphModule) -> list[bool]:
    """Apply both rewrites; says for each output but the last two whether it is an outer product."""
    for node in list(program.graph.nodes):
        if node.target is aten.max_pool2d_with_indices.default:
            _rewrite_pool(program.graph, node)
        elif node.target is aten.add.Tensor:
            _rewrite_bias(program.graph, node)
    (output,) = (node for node in program.graph.nodes if node.op == "output")
    *grads, loss, share = output.args[0]
    factors = [_factors(program.graph, node, output) for node in grads]
    flat: list[fx.Node] = []
    for node, pair in zip(grads, factors, strict=True):
        flat += [node] if pair is None else list(pair)
    output.args = ([*flat, loss, share],)
    # The new number of outputs does not fit the traced pytree.
    info = program.graph._codegen.pytree_info  # type: ignore[attr-defined]
    spec = torch.utils._pytree.tree_structure([0] * (len(flat) + 2))
    program.graph._codegen.pytree_info = info._replace(out_spec=spec)  # type: ignore[attr-defined]
    simplify(program.graph)
    program.recompile()
    return [pair is not None for pair in factors]


def _rewrite_pool(graph: fx.Graph, node: fx.Node) -> None:
    """Replace 2 x 2 pooling and its backward pass, where that is what they are."""
    x, *rest = node.args
    size = list(x.meta["val"].shape)  # type: ignore[union-attr]
    plain = [list(a) if isinstance(a, (list, tuple)) else a for a in rest]
    if plain not in ([[2, 2]], [[2, 2], [2, 2]]) or size[-1] % 2 or size[-2] % 2:
        return
    if not x.meta["val"].is_contiguous():  # type: ignore[union-attr]
        return
    uses = list(node.users)
    if any(use.target is not operator.getitem for use in uses):
        return
    values = [use for use in uses if use.args[1] == 0]
    backward = _backward_of(node, [use for use in uses if use.args[1] == 1])
    if backward is None:
        return
    for use in values:
        with graph.inserting_before(use):
            new = graph.call_function(pool, (x,))
            new.meta = dict(use.meta)
        use.replace_all_uses_with(new)
    for use in backward:
        mask = _relu_mask(use)
        with graph.inserting_before(use):
            new = graph.call_function(pool_backward, (use.args[0], use.args[1], mask is not None))
            new.meta = dict(use.meta)
        use.replace_all_uses_with(new)
        if mask is not None:
            mask.replace_all_uses_with(mask.args[0])  # type: ignore[arg-type]


def _backward_of(node: fx.Node, indices: list[fx.Node]) -> list[fx.Node] | None:
    """The nodes that use the pooling's indices, if all are its backward pass or changes of view."""
    found: list[fx.Node] = []
    open_nodes = list(indices)
    while open_nodes:
        for use in open_nodes.pop().users:
            if use.target is aten.max_pool2d_with_indices_backward.default:
                found.append(use)
            elif use.target in VIEWS:
                open_nodes.append(use)
            else:
                return None
    return found


def _rewrite_bias(graph: fx.Graph, node: fx.Node) -> None:
    """Give a convolution's bias to the convolution, where it was added after it."""
    shown, bias = node.args[:2]
    conv = shown
    while isinstance(conv, fx.Node) and conv.target in VIEWS and len(conv.users) == 1:
        conv = conv.args[0]
    values = bias
    while isinstance(values, fx.Node) and values.target in (*VIEWS, aten.unsqueeze.default):
        values = values.args[0]
    if not isinstance(conv, fx.Node) or not isinstance(values, fx.Node):
        return
    if conv.target is not aten.convolution.default or len(conv.users) != 1 or conv.args[2]:
        return
    out, added = shown.meta["val"].shape, bias.meta["val"].shape  # type: ignore[union-attr]
    learners, channels = out[0], out[2] if len(out) == 5 else 0
    if added != (learners, 1, channels, 1, 1) or values.meta["val"].shape != (learners, channels):
        return
    with graph.inserting_before(conv):
        flat = graph.call_function(aten.view.default, (values, [learners * channels]))
    flat.meta["val"] = values.meta["val"].reshape(-1)
    conv.args = (*conv.args[:2], flat, *conv.args[3:])
    node.replace_all_uses_with(shown)  # type: ignore[arg-type]


def _relu_mask(node: fx.Node) -> fx.Node | None:
    """The gradient of relu, if it is what becomes of a pooling's, and the pooling's input its own.

    Of each window only the maximum gets a gradient, so its sign alone decides.
    """
    source, use = node.args[1], node
    while isinstance(source, fx.Node) and source.target in VIEWS:
        source = source.args[0]
    while len(use.users) == 1:
        (use,) = use.users
        if use.target is aten.threshold_backward.default:
            same = use.args[1] is source and use.args[2] == 0 and use.args[0] is not source
            return use if same else None
        if use.target not in VIEWS:
            return None
    return None


def _factors(graph: fx.Graph, node: fx.Node, output: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """(a, b) with node = a b, if it is a bmm over one sample, seen through transpositions."""
    shape = node.meta["val"].shape
    flipped = False
    while node.target is not aten.bmm.default:
        source = node.args[0] if node.args else None
        if not isinstance(source, fx.Node):
            return None
        same = source.meta["val"].shape == shape
        if node.target is aten.transpose.int and set(node.args[1:]) in ({1, 2}, {-1, -2}):
            flipped = not flipped
        elif node.target not in (aten.view.default, aten._unsafe_view.default) or not same:
            return None
        shape = source.meta["val"].shape
        node = source
    a, b = node.args
    if not isinstance(a, fx.Node) or not isinstance(b, fx.Node) or len(shape) != 3:
        return None
    if a.meta["val"].shape[2] != 1:
        return None
    if flipped:
        with graph.inserting_before(output):
            a, b = (
                graph.call_function(aten.transpose.int, (b, 1, 2)),
                graph.call_function(aten.transpose.int, (a, 1, 2)),
            )
    return a, b
