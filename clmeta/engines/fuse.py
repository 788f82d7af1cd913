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
VIEWS = (
    aten.select.int,
    aten.slice.Tensor,
    aten.view.default,
    aten.unsqueeze.default,
    aten.expand.default,
    aten.alias.default,
)


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

        examples = [_example(x.detach()) for x in (*scalars, *arrays)]
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


def _example(x: Tensor) -> Tensor:
    """A copy with the same strides; without its numbers, which do not matter, where it has gaps."""
    copy = x.clone()
    if copy.stride() == x.stride():
        return copy
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device)


def _compile(program: fx.GraphModule, examples: Sequence[Tensor]) -> Callable[..., Any]:
    from torch._inductor import config
    from torch._inductor.compile_fx import compile_fx

    # By default a long expression that is used twice, such as dw, is written to memory between.
    with config.patch(realize_opcount_threshold=10_000, realize_reads_threshold=10_000):
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
    constants = {node for node in traced.graph.nodes if node.op == "get_attr"}
    scalar = {*inputs[:count], *constants}
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
    # A view of a result is no work: only the result itself is handed on.
    for node in reversed(list(traced.graph.nodes)):
        if node in scalar and node.target in VIEWS and _outside(node, scalar):
            scalar.remove(node)
    needed, inverses = [], []
    for node in traced.graph.nodes:
        users = _outside(node, scalar)
        if node in scalar and node.op == "call_function" and users:
            divisions = [user for user in users if _divides(user, node)]
            inverses += [node] if divisions else []
            needed += [node] if len(divisions) < len(users) else []
    first.output(
        [copies[node] for node in needed]
        + [first.call_function(aten.reciprocal.default, (copies[node],)) for node in inverses]
    )
    second = fx.Graph()
    made: dict[fx.Node, fx.Node] = {}
    for node in inputs:
        made[node] = second.node_copy(node)
    for i, node in enumerate(needed):
        made[node] = second.placeholder(f"scalar_{i}")
    inverse = {node: second.placeholder(f"inverse_{i}") for i, node in enumerate(inverses)}
    for node in traced.graph.nodes:
        if node in made or (node in scalar and node not in constants):
            continue
        divisor = node.args[1] if node.target is aten.div.Tensor else None
        if divisor in inverse:
            product = (made[node.args[0]], inverse[divisor])
            made[node] = second.call_function(aten.mul.Tensor, product)
        else:
            made[node] = second.node_copy(node, lambda n: made[n])
    return fx.GraphModule(traced, first), fx.GraphModule(traced, second)


def _outside(node: fx.Node, scalar: set[fx.Node]) -> list[fx.Node]:
    return [user for user in node.users if user not in scalar]


def _divides(user: fx.Node, node: fx.Node) -> bool:
    """Whether a node divides another tensor by ``node``."""
    by_it = user.target is aten.div.Tensor and user.args[1] is node
    return by_it and isinstance(user.args[0], fx.Node) and user.args[0] is not node


def _changes(node: fx.Node) -> bool:
    """Whether a node writes to one of its inputs."""
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.is_mutable
