"""The C program of a step size per unit or weight: weights, trace, beta and meta state at once.

As in `clmeta.native.kernels`, with alpha and the meta update inside. A unit's numbers stand in a
row, so that z is the product of one row; with a step size per weight a row is one number long.
"""

from __future__ import annotations

from array import array

import torch

from clmeta.native import cc as _cc
from clmeta.native.c_source import C_TYPES, PRELUDE, PRODUCT, fill, lines
from clmeta.native.kernels import MetaMove, Moves, write_rule
from clmeta.rules import Rule

META = "meta_"

FINE = """
void fine(long first, long last, const long (*piece)[3], T *const *tensors, T *const *units,
          long count, const long *runs, const char *ok, const double *numbers, const double *c,
          const double *meta_c)
{
    for (long p = last - 1; p >= first; p--) {
        const long owner = piece[p][0], start = piece[p][1], n = piece[p][2], run = runs[owner];
        if (!ok[owner]) continue;
        const double v_t = numbers[owner], v_meta_t = v_t;
        const T gamma = (T)numbers[count + owner], kappa = (T)numbers[2 * count + owner];
        const T eta = (T)numbers[3 * count + owner], low = (T)numbers[4 * count + owner];
        const T high = (T)numbers[5 * count + owner];
@pointers@
@once@
        if (run == 1)
            for (long i = 0; i < n; i++) {
                const long k = i;
                const T alpha = p_alpha[k], shrink = alpha * kappa, decay = gamma * (1 - shrink);
                const T v_g = p_g[i], v_meta_g = @product@;
@body@
@meta@
            }
        else
            for (long k = 0; k < n / run; k++) {
                const T alpha = p_alpha[k], shrink = alpha * kappa, decay = gamma * (1 - shrink);
                const T v_meta_g = @sum@;
                for (long i = k * run; i < (k + 1) * run; i++) {
                    const T v_g = p_g[i];
@body@
                }
@meta@
            }
    }
}
"""

MOVE_BETA = """
@load@
@each@
const T moved = p_beta[k] - eta * @u@, raised = moved < low ? low : moved;
p_beta[k] = raised > high ? high : raised;
@store@
"""


class FineMoves:
    """The compiled products and steps of a base and a meta rule for one dtype.

    Raises:
        CannotTrace, CannotBuild: why there are none.

    Attributes:
        names, unit_names: the arrays of each tensor and of each tensor's units, in the order in
            which their addresses are passed.
        constants, meta_constants: the rules' options.
    """

    def __init__(self, rule: Rule, meta: Rule | None, dtype: torch.dtype) -> None:
        Moves(rule, dtype, meta is not None)  # which compare the formulas with the rules
        if meta is not None:
            MetaMove(meta, dtype)
        kind = C_TYPES[dtype]
        written = write_rule(rule, kind)
        held = ("w", *rule.slots, *(("h",) if meta is not None else ()))
        self.names, self.constants = ("g", *held), written.constants
        once, move_beta = written.once, ""
        self.unit_names: tuple[str, ...] = ("alpha", "beta")
        self.meta_constants = array("d", [0.0])
        if meta is not None:
            above = write_rule(meta, kind, META)
            self.unit_names += tuple(META + name for name in meta.slots)
            self.meta_constants = above.constants
            move_beta = fill(
                MOVE_BETA,
                load="\n".join(f"const T v_{META}{n} = p_{META}{n}[k];" for n in meta.slots),
                each="\n".join(above.each),
                u=above.u,
                store="\n".join(f"p_{META}{name}[k] = {x};" for name, x in above.new.items()),
            )
            once = once + above.once
        place = "T *restrict p_{} = {}[{} * count + owner] + {};"
        pointers = [place.format(n, "tensors", k, "start") for k, n in enumerate(self.names)]
        pointers += [
            place.format(name, "units", k, "start / run") for k, name in enumerate(self.unit_names)
        ]
        text = PRELUDE.format(T=kind, align=dtype.itemsize) + PRODUCT
        text += fill(
            FINE,
            pointers=lines(pointers, 8),
            once=lines(once, 8),
            body=written.body(held),
            meta=move_beta.strip(),
            product="v_g * p_h[i]" if meta is not None else "0",
            sum="(T)dot(p_h + k * run, p_g + k * run, run)" if meta is not None else "0",
        )
        library = _cc.load(text)
        self.product = _cc.declare(library.product, "llpppppp")
        self.fine = _cc.declare(library.fine, "llppplppppp")
