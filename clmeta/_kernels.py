"""C programs of one rule: the meta-gradient's products, the move of the weights, the meta update.

The move reads and writes each array once (equations.md, section 4)::

    dw = -alpha (u + kappa w);  w <- w + dw;  h <- gamma (1 - alpha kappa) h + dw

A table of pieces says which range of which tensor is whose turn, so that ranges of pieces can go to
threads. Sums of products are kept in vectors over a piece, and in double precision beyond it.
"""

from __future__ import annotations

import ctypes
import dataclasses
from array import array

import torch

from clmeta import _cc
from clmeta._expression import CannotTrace, Formula, Writer, trace_rule
from clmeta.rules import Rule

#: Numbers per piece. A sum over a piece is made in the weights' own precision, by 64 or 32 lanes.
PIECE = 16_384

C_TYPES = {torch.float32: "float", torch.float64: "double"}

PRELUDE = """
#include <math.h>
typedef {T} T;
typedef T V __attribute__((vector_size(64), aligned({align})));
enum {{ LANES = 64 / sizeof(T) }};
static inline float signf(float x) {{ return (float)((x > 0) - (x < 0)); }}
static inline double sign(double x) {{ return (double)((x > 0) - (x < 0)); }}
"""

PRODUCT = """
void product(long first, long last, const long (*piece)[3], T *const *a, T *const *b, double *out)
{
    for (long p = first; p < last; p++) {
        const T *x = a[piece[p][0]] + piece[p][1], *y = b[piece[p][0]] + piece[p][1];
        const long n = piece[p][2];
        V s[4] = {0};
        long i = 0;
        for (; i + 4 * LANES <= n; i += 4 * LANES)
            for (int k = 0; k < 4; k++)
                s[k] += *(const V *)(x + i + k * LANES) * *(const V *)(y + i + k * LANES);
        double total = 0;
        for (int k = 0; k < 4; k++)
            for (int j = 0; j < LANES; j++) total += s[k][j];
        for (; i < n; i++) total += (double)x[i] * y[i];
        out[p] = total;
    }
}

/* 0 where all numbers are finite, not a number otherwise. */
void check(long first, long last, const long (*piece)[3], T *const *b, double *out)
{
    for (long p = first; p < last; p++) {
        const T *y = b[piece[p][0]] + piece[p][1];
        const long n = piece[p][2];
        V s[4] = {0};
        long i = 0;
        for (; i + 4 * LANES <= n; i += 4 * LANES)
            for (int k = 0; k < 4; k++) s[k] += *(const V *)(y + i + k * LANES) * (T)0;
        double total = 0;
        for (int k = 0; k < 4; k++)
            for (int j = 0; j < LANES; j++) total += s[k][j];
        for (; i < n; i++) total += y[i] * (T)0;
        out[p] = total;
    }
}
"""

# Pieces are taken from the last to the first: the products' last ones are still in the cache.
MOVE = """
void move(long first, long last, const long (*piece)[3], T *const *tensors, long count,
          const double *numbers, const double *c)
{
    for (long p = last - 1; p >= first; p--) {
        const long owner = piece[p][0], n = piece[p][2];
        const double v_t = numbers[owner];
        const T alpha = (T)numbers[count + owner];
        const T shrink = (T)numbers[2 * count + owner];
        const T decay = (T)numbers[3 * count + owner];
@pointers@
@once@
        for (long i = 0; i < n; i++) {
@load@
@each@
            const T dw = -(alpha * @u@) - shrink * v_w;
            p_w[i] = v_w + dw;
@store@
        }
    }
}
"""

META = """
void meta(long count, const char *active, const double *z, const double *eta, double low,
          double high, T *p_beta, T *p_t, @arguments@const double *c)
{
    for (long i = 0; i < count; i++) {
        if (!active[i]) continue;
        const double v_g = z[i], v_t = p_t[i] + 1.0;
@load@
@once@
@each@
        p_beta[i] = (T)fmin(fmax(p_beta[i] - eta[i] * @u@, low), high);
        p_t[i] = (T)v_t;
@store@
    }
}
"""

CALL = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)


def _lines(lines: list[str], indent: int) -> str:
    return "\n".join(" " * indent + line for line in lines)


def _fill(template: str, **parts: str) -> str:
    for name, text in parts.items():
        template = template.replace(f"@{name}@", text)
    return template


def _formula(rule: Rule) -> Formula:
    """A rule's formula; only of rules whose options can't change between steps."""
    fields = {field.name for field in dataclasses.fields(rule)}
    if not type(rule).__dataclass_params__.frozen or not vars(rule).keys() <= fields:  # type: ignore[attr-defined]
        raise CannotTrace("its attributes may change")
    return trace_rule(rule)


class Moves:
    """The compiled products and moves of a base rule for one dtype.

    Raises:
        CannotTrace, CannotBuild: why there are none.
    """

    def __init__(self, rule: Rule, dtype: torch.dtype, adaptive: bool) -> None:
        formula = _formula(rule)
        writer = Writer(C_TYPES[dtype])
        u = writer.value(formula.u)
        new = {name: writer.value(x) for name, x in formula.new.items()}
        self.names = ("w", "g", *rule.slots, *(("h",) if adaptive else ()))
        source = "piece[p][1] + tensors[%d * count + owner]"
        pointers = [
            f"{'const ' if name == 'g' else ''}T *restrict p_{name} = {source % k};"
            for k, name in enumerate(self.names)
        ]
        store = [f"p_{name}[i] = {value};" for name, value in new.items()]
        store += ["p_h[i] = decay * v_h + dw;"] if adaptive else []
        text = PRELUDE.format(T=C_TYPES[dtype], align=dtype.itemsize) + PRODUCT
        text += _fill(
            MOVE,
            pointers=_lines(pointers, 8),
            once=_lines(writer.once, 8),
            load=_lines([f"const T v_{name} = p_{name}[i];" for name in self.names], 12),
            each=_lines(writer.each, 12),
            u=u,
            store=_lines(store, 12),
        )
        library = _cc.load(text)
        self.constants = array("d", formula.trace.constants or [0.0])
        self.product, self.check, self.move = library.product, library.check, library.move
        self.product.argtypes = (*CALL, ctypes.c_void_p, ctypes.c_void_p)
        self.check.argtypes = (*CALL, ctypes.c_void_p)
        self.move.argtypes = (*CALL, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
        for function in (self.product, self.check, self.move):
            function.restype = None


class MetaMove:
    """The compiled meta update of all blocks, in double precision.

    Raises:
        CannotTrace, CannotBuild: why there is none.
    """

    def __init__(self, rule: Rule, dtype: torch.dtype) -> None:
        formula = _formula(rule)
        writer = Writer("double")
        u = writer.value(formula.u)
        new = {name: writer.value(x) for name, x in formula.new.items()}
        text = PRELUDE.format(T=C_TYPES[dtype], align=dtype.itemsize)
        text += _fill(
            META,
            arguments="".join(f"T *p_{name}, " for name in rule.slots),
            load=_lines([f"const double v_{name} = p_{name}[i];" for name in rule.slots], 8),
            once=_lines(writer.once, 8),
            each=_lines(writer.each, 8),
            u=u,
            store=_lines([f"p_{name}[i] = (T){value};" for name, value in new.items()], 8),
        )
        self.constants = array("d", formula.trace.constants or [0.0])
        self.function = _cc.load(text).meta
        self.function.restype = None
        pointers = (ctypes.c_void_p,) * (3 + len(rule.slots))
        self.function.argtypes = (
            ctypes.c_long,
            *(ctypes.c_void_p,) * 3,
            *(ctypes.c_double,) * 2,
            *pointers,
        )
