"""Forward-mode products along many tangents, over nested dicts and tuples of tensors."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.func import jvp, vmap

Tree: TypeAlias = Any


def tree_map(f: Callable[..., Any], tree: Tree, *rest: Tree) -> Tree:
    """The same nesting with ``f`` applied to corresponding tensors."""
    if isinstance(tree, dict):
        return {key: tree_map(f, tree[key], *(r[key] for r in rest)) for key in tree}
    if isinstance(tree, tuple):
        return tuple(tree_map(f, *each) for each in zip(tree, *rest, strict=True))
    return f(tree, *rest)


def leaves(tree: Tree) -> Iterator[Tensor]:
    """The tensors of a nesting, in order."""
    if isinstance(tree, dict | tuple):
        for each in tree.values() if isinstance(tree, dict) else tree:
            yield from leaves(each)
    else:
        yield tree


def scale(tree: Tree, by: float) -> Tree:
    """Every tensor times ``by``."""
    return tree if by == 1 else tree_map(lambda x: by * x, tree)


def zeros(like: Tree, *leading: int) -> Tree:
    """Zeros in the shapes of ``like`` behind the leading dimensions."""
    return tree_map(lambda x: x.new_zeros(leading + tuple(x.shape)), like)


def each(
    f: Callable[[Tree], tuple[Tree, Tree]], tangents: Tree, chunk: int | None = None
) -> tuple[Tree, Tree]:
    """``f`` of each of k tangents: what it returns first is the same for all, second stacked.

    Args:
        f: from one tangent to (what does not depend on the tangent, what does).
        tangents: nesting of tensors with a leading dimension k.
        chunk: tangents handled at once; bounds the working memory. None: all.
    """
    k = next(leaves(tangents)).shape[0]
    if k == 1:
        shared, own = f(tree_map(lambda x: x[0], tangents))
        return shared, tree_map(lambda x: x.unsqueeze(0), own)
    many = vmap(f, out_dims=(None, 0), randomness="same")  # type: ignore[arg-type]
    if chunk is None or chunk >= k:
        return many(tangents)
    parts = []
    for start in range(0, k, chunk):
        shared, own = many(tree_map(lambda x, s=start: x[s : s + chunk], tangents))
        parts.append(own)
    return shared, tree_map(lambda *x: torch.cat(x), *parts)


def along(
    f: Callable[..., Tree], primals: tuple, tangents: tuple, chunk: int | None = None
) -> tuple[Tree, Tree]:
    """``f(*primals)`` and its derivative along each of k tangents, forward mode.

    Args:
        f: pure function of ``primals``.
        primals: one nesting of tensors per argument of ``f``.
        tangents: the same nestings, every tensor with a leading dimension k.
        chunk: tangents handled at once; None: all.

    Returns:
        Value of ``f``, and its tangents with leading dimension k.
    """

    # Forward mode writes beside its inputs; an expanded tensor, a sum's gradient, has no room.
    primals = tree_map(torch.Tensor.contiguous, primals)

    def one(tangent: tuple) -> tuple[Tree, Tree]:
        value, derivative = jvp(f, primals, tangent)  # type: ignore[misc]
        return value, derivative

    return each(one, tangents, chunk)


@functools.cache
def quiet_first_use() -> None:
    """Let torch load its forward-mode formulas without the FutureWarning that this raises."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        jvp(torch.sin, (torch.zeros(()),), (torch.ones(()),))
