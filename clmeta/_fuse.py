"""Compile a function of tensors that changes some of them in place, and depends on few scalars.

What depends on scalars alone (bias corrections, decays) becomes a program of its own: left in one
program, the compiler would compute it again for every weight. Divisions by such values become
products with their inverses.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx

aten = torch.ops.aten


class CannotCompile(Exception):
    """Why there is no compiled program; nothing was changed."""


class Fused:
    """``function`` compiled for the shapes of example arguments.

    Args:
        function: takes tensors only, changes some in place and returns a list of tensors.
        scalars, arrays: the example arguments, first those whose functions are computed apart.
            They are neither read nor changed.

    Raises:
        CannotCompile: where there is no working compiler.
    """

    def __init__(
        self,
        function: Callable[..., list[Tensor]],
        scalars: Sequence[Tensor],
        arrays: Sequence[Tensor],
    ) -> None:
        from torch.fx.experimental.proxy_tensor import make_fx

        examples = [x.detach().clone() for x in (*scalars, *arrays)]
        self._count = len(scalars)
        try:
            with quietly(), torch.no_grad():
                traced = make_fx(lambda *args: function(*args))(*examples)
                first, second = split(traced, len(scalars))
                self._first = _compile(first, examples[: len(scalars)])
                values = self._first(*examples[: len(scalars)])
                self._second = _compile(second, [*examples, *values])
                self._second(*examples, *values)
        except Exception as error:
            line = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise CannotCompile(line) from error

    def __call__(self, scalars: Sequence[Tensor], arrays: Sequence[Tensor]) -> list[Tensor]:
        """What ``function`` returns."""
        return self._second(*scalars, *arrays, *self._first(*scalars))


def _compile(program: fx.GraphModule, examples: Sequence[Tensor]) -> Callable[..., Any]:
    from torch._inductor.compile_fx import compile_fx

    compiled: Any = compile_fx(program, list(examples))
    return compiled


@contextmanager
def quietly() -> Iterator[None]:
    """Without a log line about CUDA where there is none."""
    logger = logging.getLogger("torch.utils.cpp_extension")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def split(traced: fx.GraphModule, count: int) -> tuple[fx.GraphModule, fx.GraphModule]:
    """(first, second): the pure functions of the first ``count`` inputs, and all the rest.

    ``second`` takes all inputs and then what ``first`` returns.
    """
    inputs = [node for node in traced.graph.nodes if node.op == "placeholder"]
    scalar = set(inputs[:count])
    for node in traced.graph.nodes:
        sources = node.all_input_nodes
        pure = node.op == "call_function" and not _changes(node)
        if pure and all(source in scalar for source in sources):
            scalar.add(node)
    first = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in traced.graph.nodes:
        if node in scalar and (node.op != "placeholder" or node in inputs[:count]):
            copies[node] = first.node_copy(node, lambda n: copies[n])
    needed = [
        node
        for node in traced.graph.nodes
        if node in scalar
        and node.op != "placeholder"
        and any(user not in scalar for user in node.users)
    ]
    inverses = {n for n in needed if any(_divides(user, n) for user in n.users)}
    results = [copies[n] for n in needed]
    results += [
        first.call_function(aten.reciprocal.default, (copies[n],)) for n in needed if n in inverses
    ]
    first.output(results)
    second = fx.Graph()
    made: dict[fx.Node, fx.Node] = {}
    for node in inputs:
        made[node] = second.node_copy(node)
    for i, node in enumerate(needed):
        made[node] = second.placeholder(f"scalar_{i}")
    inverse = {n: second.placeholder(f"inverse_{i}") for i, n in enumerate(needed) if n in inverses}
    for node in traced.graph.nodes:
        if node in made or node in scalar:
            continue
        made[node] = second.node_copy(node, lambda n: made[n])
        divisor = node.args[1] if node.target is aten.div.Tensor else None
        if divisor in inverse:
            made[node].target = aten.mul.Tensor
            made[node].args = (made[node].args[0], inverse[divisor])
    return fx.GraphModule(traced, first), fx.GraphModule(traced, second)


def _divides(user: fx.Node, node: fx.Node) -> bool:
    return user.target is aten.div.Tensor and user.args[1] is node


def _changes(node: fx.Node) -> bool:
    """Whether a node writes to one of its inputs."""
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.is_mutable
