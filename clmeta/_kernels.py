"""C programs of one rule: the meta-gradient's products, the move of the weights, the meta update.

The move reads and writes each array once (equations.md, section 4)::

    dw = -alpha (u + kappa w);  w <- w + dw;  h <- gamma (1 - alpha kappa) h + dw

A table of pieces says which range of which tensor is whose turn, so that ranges of pieces can go to
threads. Sums of products are kept in vectors over a piece, and in double precision beyond it.
"""

from __future__ import annotations

import ctypes
import dataclasses
import math
from array import array
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from clmeta import _cc
from clmeta._c_writer import Writer
from clmeta._expression import CannotTrace, Formula, trace_rule
from clmeta._table import Table, address
from clmeta.rules import Rule

C_TYPES = {torch.float32: "float", torch.float64: "double"}

PRELUDE = """
#include <math.h>
typedef {T} T;
typedef T V __attribute__((vector_size(64), aligned({align})));
enum {{ LANES = 64 / sizeof(T) }};
static inline float signf(float x) {{ return (float)((x > 0) - (x < 0)); }}
static inline double sign(double x) {{ return (double)((x > 0) - (x < 0)); }}
/* As torch's, and unlike fmax and fmin, these let no NaN get lost. */
static inline float maximumf(float a, float b) {{ return a > b || a != a ? a : b; }}
static inline double maximum(double a, double b) {{ return a > b || a != a ? a : b; }}
static inline float minimumf(float a, float b) {{ return a < b || a != a ? a : b; }}
static inline double minimum(double a, double b) {{ return a < b || a != a ? a : b; }}
"""

#: z of pieces. A gradient that is an outer product is given as its first factor, with the second
#: one's length as the tensor's width; it is never formed.
PRODUCT = """
static double dot(const T *x, const T *y, long n)
{
    V s[4] = {0};
    long i = 0;
    for (; i + 4 * LANES <= n; i += 4 * LANES)
        for (int k = 0; k < 4; k++)
            s[k] += *(const V *)(x + i + k * LANES) * *(const V *)(y + i + k * LANES);
    double total = 0;
    for (int k = 0; k < 4; k++)
        for (int j = 0; j < LANES; j++) total += s[k][j];
    for (; i < n; i++) total += (double)x[i] * y[i];
    return total;
}

/* 0 where all numbers are finite, not a number otherwise; and the largest of their magnitudes. */
static double zero_if_finite(const T *x, long n, double *largest)
{
    V s[4] = {0};
    T most = 0;
    long i = 0;
    for (; i + 4 * LANES <= n; i += 4 * LANES)
        for (int k = 0; k < 4; k++) s[k] += *(const V *)(x + i + k * LANES) * (T)0;
    double total = 0;
    for (int k = 0; k < 4; k++)
        for (int j = 0; j < LANES; j++) total += s[k][j];
    for (; i < n; i++) total += x[i] * (T)0;
    if (largest) {
        for (i = 0; i < n; i++) {
            const T size = x[i] < 0 ? -x[i] : x[i];
            most = size > most ? size : most;
        }
        *largest = most;
    }
    return total;
}

/* Sums of h g over pieces; without h, of 0 g, which tells whether g is finite. */
static void product_of(long first, long last, const long (*piece)[3], T *const *h, T *const *g,
                       T *const *second, const long *width, double *out)
{
    for (long p = first; p < last; p++) {
        const long owner = piece[p][0], start = piece[p][1], n = piece[p][2];
        const long columns = width[owner];
        const T *a = g[owner] + (columns ? start / columns : start);
        if (!columns) {
            out[p] = h ? dot(h[owner] + start, a, n) : zero_if_finite(a, n, 0);
            continue;
        }
        double rows, along;
        double total = zero_if_finite(a, n / columns, &rows)
                       + zero_if_finite(second[owner], columns, &along);
        total += (T)rows * (T)along * (T)0; /* the largest of their products can overflow */
        if (h)
            for (long q = 0; q < n / columns; q++)
                total += a[q] * dot(h[owner] + start + q * columns, second[owner], columns);
        out[p] = total;
    }
}

void product(long first, long last, const long (*piece)[3], T *const *h, T *const *g,
             T *const *second, const long *width, double *out)
{
    product_of(first, last, piece, h, g, second, width, out);
}
"""

# Pieces are taken from the last to the first: the products' last ones are still in the cache.
# What is called here is static: another library's function of that name would be called instead.
MOVE = """
static void move_of(long first, long last, const long (*piece)[3], T *const *tensors, long count,
                    T *const *second, const long *width, const double *numbers, const double *c)
{
    for (long p = last - 1; p >= first; p--) {
        const long owner = piece[p][0], start = piece[p][1], n = piece[p][2];
        const long columns = width[owner];
        const double v_t = numbers[owner];
        const T alpha = (T)numbers[count + owner];
        const T shrink = (T)numbers[2 * count + owner];
        const T decay = (T)numbers[3 * count + owner];
        const T *restrict p_g = tensors[owner] + (columns ? start / columns : start);
@pointers@
@once@
        if (!columns)
            for (long i = 0; i < n; i++) {
                const T v_g = p_g[i];
@body@
            }
        else
            for (long q = 0; q < n / columns; q++) {
                const T factor = p_g[q], *restrict p_b = second[owner];
                for (long j = 0; j < columns; j++) {
                    const long i = q * columns + j;
                    const T v_g = factor * p_b[j];
@body@
                }
            }
    }
}

void move(long first, long last, const long (*piece)[3], T *const *tensors, long count,
          T *const *second, const long *width, const double *numbers, const double *c)
{
    move_of(first, last, piece, tensors, count, second, width, numbers, c);
}

/* Products and move of one learner after the other, while its trace is in the cache; z by block.
   A learner whose z is not finite is left as it is. */
void learners(long first, long last, const long (*piece)[3], const long *end, long blocks,
              const long *block, long each, T *const *tensors, long count, T *const *h,
              T *const *second, const long *width, const double *numbers, const double *c,
              double *sums, double *z, char *ok)
{
    for (long r = first; r < last; r++) {
        const long from = r ? end[r * each - 1] : 0, to = end[(r + 1) * each - 1];
        product_of(from, to, piece, h, tensors, second, width, sums);
        for (long b = 0; b < blocks; b++) z[r * blocks + b] = 0;
        for (long p = from; p < to; p++) z[r * blocks + block[piece[p][0]]] += sums[p];
        double all = 0;
        for (long b = 0; b < blocks; b++) all += z[r * blocks + b] * 0;
        ok[r] = all == 0;
        if (ok[r]) move_of(from, to, piece, tensors, count, second, width, numbers, c);
    }
}
"""

BODY = """
@load@
@each@
const T dw = -(alpha * @u@) - shrink * v_w;
p_w[i] = v_w + dw;
@store@
"""

META = """
void meta(long count, const char *active, const double *z, const double *eta, const double *low,
          const double *high, T *p_beta, T *p_t, @arguments@const double *c)
{
    for (long i = 0; i < count; i++) {
        if (!active[i]) continue;
        const double v_g = z[i], v_t = p_t[i] + 1.0;
@load@
@once@
@each@
        p_beta[i] = (T)minimum(maximum(p_beta[i] - eta[i] * @u@, low[i]), high[i]);
        p_t[i] = (T)v_t;
@store@
    }
}
"""


def lines(several: list[str], indent: int) -> str:
    """Lines of C, one below the other."""
    return "\n".join(" " * indent + line for line in several)


def fill(template: str, **parts: str) -> str:
    """A template with each ``@name@`` replaced."""
    for name, text in parts.items():
        template = template.replace(f"@{name}@", text)
    return template


def declare(function: Any, kinds: str) -> Any:
    """A C function that takes long integers (l) and pointers (p) and returns nothing."""
    function.argtypes = [{"l": ctypes.c_long, "p": ctypes.c_void_p}[kind] for kind in kinds]
    function.restype = None
    return function


def formula_of(rule: Rule, tag: str = "") -> Formula:
    """A rule's formula; only of rules whose options can't change between steps."""
    fields = {field.name for field in dataclasses.fields(rule)}
    fixed = all(isinstance(x, bool | int | float | str | None) for x in vars(rule).values())
    frozen = type(rule).__dataclass_params__.frozen  # type: ignore[attr-defined]
    if not (fixed and frozen and vars(rule).keys() <= fields):
        raise CannotTrace("its attributes may change")
    return trace_rule(rule, tag)


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
        formula = formula_of(rule)
        writer = Writer(C_TYPES[dtype])
        u = writer.value(formula.u)
        new = {name: writer.value(x) for name, x in formula.new.items()}
        held = ("w", *rule.slots, *(("h",) if adaptive else ()))
        self.names = ("g", *held)
        pointers = [
            f"T *restrict p_{name} = tensors[{k} * count + owner] + start;"
            for k, name in enumerate(held, 1)
        ]
        store = [f"p_{name}[i] = {value};" for name, value in new.items()]
        store += ["p_h[i] = decay * v_h + dw;"] if adaptive else []
        body = fill(
            BODY,
            load="\n".join(f"const T v_{name} = p_{name}[i];" for name in held),
            each="\n".join(writer.each),
            u=u,
            store="\n".join(store),
        )
        text = PRELUDE.format(T=C_TYPES[dtype], align=dtype.itemsize) + PRODUCT
        text += fill(
            MOVE, pointers=lines(pointers, 8), once=lines(writer.once, 8), body=body.strip()
        )
        library = _cc.load(text)
        self.constants = array("d", formula.trace.constants or [0.0])
        self.product = declare(library.product, "llpppppp")
        self.move = declare(library.move, "llpplpppp")
        self.learners = declare(library.learners, "llpplplplpppppppp")
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


class MetaMove:
    """The compiled meta update of all blocks, in double precision.

    Raises:
        CannotTrace, CannotBuild: why there is none.
    """

    def __init__(self, rule: Rule, dtype: torch.dtype) -> None:
        formula = formula_of(rule)
        writer = Writer("double")
        u = writer.value(formula.u)
        new = {name: writer.value(x) for name, x in formula.new.items()}
        text = PRELUDE.format(T=C_TYPES[dtype], align=dtype.itemsize)
        text += fill(
            META,
            arguments="".join(f"T *p_{name}, " for name in rule.slots),
            load=lines([f"const double v_{name} = p_{name}[i];" for name in rule.slots], 8),
            once=lines(writer.once, 8),
            each=lines(writer.each, 8),
            u=u,
            store=lines([f"p_{name}[i] = (T){value};" for name, value in new.items()], 8),
        )
        self.constants = array("d", formula.trace.constants or [0.0])
        self.function = declare(_cc.load(text).meta, "l" + "p" * (8 + len(rule.slots)))
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
