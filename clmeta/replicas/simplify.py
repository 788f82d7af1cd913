"""Take out of a traced program what computes nothing: at batch size one a call costs as much as
the arithmetic of many.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

aten = torch.ops.aten
RESHAPES = (aten.view.default, aten._unsafe_view.default)
NAMES = (aten.alias.default, aten.detach.default)


def simplify(graph: fx.Graph) -> None:
    """Replace each node that is its own input in disguise, and merge chains of reshapes.

    The program must change nothing in place.
    """
    for node in list(graph.nodes):
        if not _shape_known(node) or not _shape_known(_source(node)):
            continue
        if _adds_nothing(node):
            node.replace_all_uses_with(node.args[0])
        elif _turned_back(node):
            node.replace_all_uses_with(node.args[0].args[0])
        elif (source := _reshaped(node)) is not None:
            with graph.inserting_before(node):
                shape = list(node.meta["val"].shape)
                new = graph.call_function(aten.view.default, (source, shape))
            new.meta = dict(node.meta)
            node.replace_all_uses_with(new)
    graph.eliminate_dead_code()


def _source(node: Any) -> Any:
    return node.args[0] if node.op == "call_function" and node.args else None


def _shape_known(node: Any) -> bool:
    return isinstance(node, fx.Node) and isinstance(node.meta.get("val"), torch.Tensor)


def _adds_nothing(node: Any) -> bool:
    """Whether a node equals its input in values, shape and strides."""
    if node.target in NAMES:
        return True
    mine, its = node.meta["val"], node.args[0].meta["val"]
    alike = (mine.dtype, mine.shape, mine.stride()) == (its.dtype, its.shape, its.stride())
    if node.target is aten.mul.Scalar:
        return alike and bool(node.args[1] == 1)
    if node.target is aten.permute.default:
        return alike and list(node.args[1]) == list(range(mine.dim()))
    return alike and node.target in (*RESHAPES, aten.expand.default)


def _turned_back(node: Any) -> bool:
    """Whether a node undoes the transposition that is its input."""
    source = node.args[0]
    both = node.target is source.target is aten.transpose.int
    return both and node.args[1:] == source.args[1:]


def _reshaped(node: Any) -> Any:
    """The contiguous node of which this one is a reshape, if that is shorter to write."""
    source, at = None, node
    while _is_reshape(at):
        source = at = at.args[0]
    return None if source is node.args[0] and node.target in RESHAPES else source


def _is_reshape(node: Any) -> bool:
    """Whether a node shows a contiguous array's numbers in their order, in another shape."""
    source = _source(node)
    if not _shape_known(source) or not source.meta["val"].is_contiguous():
        return False
    if node.target is aten.permute.default:
        order = [d for d in node.args[1] if source.meta["val"].shape[d] != 1]
        return order == sorted(order)
    return node.target in RESHAPES
