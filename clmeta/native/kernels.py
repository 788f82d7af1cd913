"""C programs of one rule: the meta-gradient's products, the move of the weights, the meta update.

The move reads and writes each array once (equations.md, section 4)::

    dw = -alpha (u + kappa w);  w <- w + dw;  h <- gamma (1 - alpha kappa) h + dw

A table of pieces says which range of which tensor is whose turn, so that ranges of pieces can go to
threads. Sums of products are kept in vectors over a piece, and in double precision beyond it.
"""

from __future__ import annotations

import dataclasses
import math
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from clmeta.native import cc as _cc
from clmeta.native.c_source import BODY, C_TYPES, META, MOVE, PRELUDE, PRODUCT, fill, lines
from clmeta.native.c_writer import Writer
from clmeta.native.expression import CannotTrace, trace_rule
from clmeta.native.table import Table, address, in_threads
from clmeta.rules import Rule


@dataclass(frozen=True)
class Written:
    """A rule's formula in C: statements to run once and for each number, and what they lead to.

    Attributes:
        u, new: names of the direction and of each slot's next value.
        constants: the rule's options, as the program takes them.
    """

    once: list[str]
    each: list[str]
    u: str
    new: dict[str, str]
    constants: array[float]

    def body(self, names: Sequence[str]) -> str:
        """The statements that move one number of each array in ``names``."""
        store = [f"p_{name}[i] = {value};" for name, value in self.new.items()]
        store += ["p_h[i] = decay * v_h + dw;"] if "h" in names else []
        load = [f"const T v_{name} = p_{name}[i];" for name in names]
        parts = {"load": load, "each": self.each, "u": [self.u], "store": store}
        return fill(BODY, **{name: "\n".join(part) for name, part in parts.items()}).strip()


def write_rule(rule: Rule, kind: str, tag: str = "") -> Written:
    """A rule as C, computing in ``kind``; only one whose options can't change between steps.

    Raises:
        CannotTrace: if it is not a formula of one number.
    """
    fields = {field.name for field in dataclasses.fields(rule)}
    fixed = all(isinstance(x, bool | int | float | str | None) for x in vars(rule).values())
    frozen = type(rule).__dataclass_params__.frozen  # type: ignore[attr-defined]
    if not (fixed and frozen and vars(rule).keys() <= fields):
        raise CannotTrace("its attributes may change")
    formula, writer = trace_rule(rule, tag), Writer(kind, tag)
    u = writer.value(formula.u)
    new = {name: writer.value(x) for name, x in formula.new.items()}
    constants = array("d", formula.trace.constants or [0.0])
    return Written(writer.once, writer.each, u, new, constants)


def check(
    rule: Rule, dtype: torch.dtype, direction: Callable[[Tensor, dict[str, Tensor], int], Tensor]
) -> None:
    """Compare a program with its rule over some updates: one may depend on more than its formula.

    Args:
        direction: u by the program from (g, state, t); updates the state.

    Raises:
        CannotTrace: if they differ.
    """
    make = torch.Generator().manual_seed(0)
    mine = rule.init(torch.zeros(64, dtype=dtype))
    theirs = {name: x.clone() for name, x in mine.items()}
    if mine.keys() != {*rule.slots} or any(x.shape != (64,) for x in mine.values()):
        raise CannotTrace("init does not give one number a weight for each slot")
    rtol = 1e-3 if dtype == torch.float32 else 1e-8
    for t in range(1, 13):
        g = torch.randn(64, generator=make, dtype=dtype)
        try:
            u, new = rule.update(g.clone(), {name: x.clone() for name, x in theirs.items()}, t)
            theirs = {name: new[name] for name in rule.slots}
        except Exception as error:  # whatever a rule's own code raises
            raise CannotTrace(f"{type(error).__name__}: {error}") from error
        found = [direction(g, mine, t), *(mine[name] for name in rule.slots)]
        for a, b in zip(found, [u, *theirs.values()], strict=True):
            if not torch.allclose(a, b, rtol=rtol, atol=1e-2 * rtol, equal_nan=True):
                raise CannotTrace(f"does at update {t} what its formula does not")


class Moves:
    """The compiled products and moves of a base rule for one dtype.

    Raises:
        CannotTrace, CannotBuild: why there are none.

    Attributes:
        names: the arrays of each tensor, in the order in which their addresses are passed.
        constants: the rule's options.
    """

    def __init__(self, rule: Rule, dtype: torch.dtype, adaptive: bool) -> None:
        written = write_rule(rule, C_TYPES[dtype])
        held = ("w", *rule.slots, *(("h",) if adaptive else ()))
        self.names, self.constants = ("g", *held), written.constants
        pointers = [
            f"T *restrict p_{name} = tensors[{k} * count + owner] + start;"
            for k, name in enumerate(held, 1)
        ]
        text = PRELUDE.format(T=C_TYPES[dtype], align=dtype.itemsize) + PRODUCT
        parts = {"pointers": lines(pointers, 8), "once": lines(written.once, 8)}
        library = _cc.load(text + fill(MOVE, body=written.body(held), **parts))
        self.product = _cc.declare(library.product, "llpppppp")
        self.move = _cc.declare(library.move, "llpplpppp")
        self.learners = _cc.declare(library.learners, "llpplplplpppppppp")
        check(rule, dtype, self._direction)

    def _direction(self, g: Tensor, state: dict[str, Tensor], t: int) -> Tensor:
        """u by the program; updates the state."""
        table = Table([g.numel()], self.names)
        arrays = {"g": g, "w": torch.zeros_like(g), "h": torch.zeros_like(g), **state}
        for name in self.names:
            table.put(name, [arrays[name].data_ptr()])
        numbers = array("d", (t, 1.0, 0.0, 0.0))  # alpha = 1, no decay: w = 0 - u
        pieces, tensors = address(table.pieces), table.address("g")
        widths, constants = address(table.widths), address(self.constants)
        count = len(table.sums)
        self.move(0, count, pieces, tensors, 1, None, widths, address(numbers), constants)
        return -arrays["w"]


def sum_products(product: Any, table: Table, traced: bool) -> None:
    """Sums of h g over all pieces into ``table.sums``; of 0 g, to see what is finite, without h."""
    in_threads(
        product,
        len(table.sums),
        table.total,
        address(table.pieces),
        table.address("h") if traced else None,
        table.address("g"),
        None,
        address(table.widths),
        address(table.sums),
    )


class MetaMove:
    """The compiled meta update of all blocks, in double precision.

    Raises:
        CannotTrace, CannotBuild: why there is none.
    """

    def __init__(self, rule: Rule, dtype: torch.dtype) -> None:
        written = write_rule(rule, "double")
        text = PRELUDE.format(T=C_TYPES[dtype], align=dtype.itemsize)
        text += fill(
            META,
            arguments="".join(f"T *p_{name}, " for name in rule.slots),
            load=lines([f"const double v_{name} = p_{name}[i];" for name in rule.slots], 8),
            once=lines(written.once, 8),
            each=lines(written.each, 8),
            u=written.u,
            store=lines([f"p_{name}[i] = (T){x};" for name, x in written.new.items()], 8),
        )
        self.constants = written.constants
        self.function = _cc.declare(_cc.load(text).meta, "l" + "p" * (8 + len(rule.slots)))
        self.slots = rule.slots
        check(rule, dtype, self._direction)

    def _direction(self, g: Tensor, state: dict[str, Tensor], t: int) -> Tensor:
        """u by the program; updates the state."""
        beta, count = torch.zeros_like(g), torch.full_like(g, t - 1)
        one = torch.ones(len(g), dtype=torch.float64)
        given = [one.bool(), g.double(), one, one * -math.inf, one * math.inf]
        self([x.data_ptr() for x in given], beta, count, state)
        return -beta

    def __call__(
        self, given: Sequence[int], beta: Tensor, t: Tensor, state: dict[str, Tensor]
    ) -> None:
        """Move beta, count and state in place.

        Args:
            given: addresses of which blocks to move (bytes), z, eta and the bounds of beta
                (doubles), one number for each of beta.
            beta, t, state: of all blocks.
        """
        moved = [x.data_ptr() for x in (beta, t, *(state[name] for name in self.slots))]
        self.function(beta.numel(), *given, *moved, address(self.constants))

    def takes(self, beta: Tensor, state: dict[str, Tensor]) -> bool:
        """Whether a rule's state is such as the program reads."""
        return state.keys() == {*self.slots} and all(
            x.dtype == beta.dtype and x.shape == beta.shape and x.is_contiguous()
            for x in state.values()
        )
