"""Programs built from rules: the step of weights, traces and fine step sizes; the meta update."""

from __future__ import annotations

from array import array

import torch

from clmeta.native import cc
from clmeta.native.template import BETA, BODY, C_TYPES, INTS, META, PRELUDE, STEP, WEIGHTS, fill
from clmeta.native.trace import CannotTrace, Formula
from clmeta.rules import Rule

#: What the names of a meta rule's state, and of all that computes with it, begin with.
TAG = "meta_"


def prelude(dtype: torch.dtype) -> str:
    """What every program begins with. Raises CannotTrace for a dtype that C has no type for."""
    if dtype not in C_TYPES:
        raise CannotTrace(f"weights of {dtype}")
    return PRELUDE.format(T=C_TYPES[dtype], I=INTS[dtype], align=dtype.itemsize)


class StepProgram:
    """The compiled step of a base rule; with ``fine`` step sizes, of a meta rule too.

    Args:
        base: the base rule.
        meta: the meta rule where beta is moved with the weights; None otherwise.
        traced: whether there is a trace h.
        fine: whether units or weights have step sizes of their own.
        dtype: of all arrays.

    Attributes:
        arrays, units: names of the arrays of each tensor, and of each tensor's units, in the order
            in which their addresses are passed.
        constants, meta_constants: the rules' options.
        products, settle, moves, learners: the functions.

    Raises:
        CannotTrace, CannotBuild: why there is none.
    """

    def __init__(
        self, base: Rule, meta: Rule | None, traced: bool, fine: bool, dtype: torch.dtype
    ) -> None:
        kind = C_TYPES.get(dtype, "")
        head = prelude(dtype) + "typedef T K;\n"
        formula = Formula(base, kind)
        above = Formula(meta, kind, TAG) if meta is not None else None
        self.arrays = ("g", "w", *base.slots, *(("h",) if traced else ()))
        state = [TAG + name for name in meta.slots] if meta is not None else []
        self.units = ("alpha", *(("beta", *state) if fine else ()))
        self.constants = formula.constants
        self.meta_constants = above.constants if above else array("d", [0.0])
        pointers = [f"p_{name}" for name in (*self.arrays[1:], *self.units)]
        parts = {
            "weights": WEIGHTS if fine else "",
            "body": _body(formula, traced),
            "meta": _beta(above) if above else "",
            "once": "\n".join([*formula.once, *(above.once if above else [])]),
            "product": "v_g * p_h[i]" if above else "0",
            "dot": _DOT if above else "0",
            "arguments": ", ".join(f"T *restrict {name}" for name in pointers),
            "passed": ", ".join(pointers),
            "pointers": "\n".join(self._pointers(fine)),
            "numbers": _NUMBERS,
            "traced": str(int(traced)),
            "h": str(len(self.arrays) - 1),
            "fine": str(int(fine)),
        }
        library = cc.load(head + fill(STEP, **parts))
        self.products, self.settle, self.moves, self.learners = (
            cc.declare(library, name, "llp") for name in ("products", "settle", "moves", "learners")
        )

    def _pointers(self, fine: bool) -> list[str]:
        place = "T *p_{} = j->{}[{} * count + owner] + {};"
        made = [place.format(n, "array", k, "start") for k, n in enumerate(self.arrays) if k]
        if not fine:
            return [*made, "T *p_alpha = j->alpha + block;"]
        at = "start / row"
        return made + [place.format(n, "unit", k, at) for k, n in enumerate(self.units)]


_DOT = "outer ? factor * (T)dot(p_h + from, b, row) : (T)dot(p_h + from, a + from, row)"
_NUMBERS = ", ".join(
    [f"j->{name}[block]" for name in ("gamma", "kappa", "eta", "low", "high")]
    + ["j->c", "j->meta_c"]
)


def _body(formula: Formula, traced: bool) -> str:
    """The statements that move one number of each array."""
    new = {"w": "v_w + dw", **formula.new, **({"h": "decay * v_h + dw"} if traced else {})}
    return _moved(BODY, formula, new, "T", "", "i")


def _beta(formula: Formula) -> str:
    """The statements that move one beta and its state."""
    new = {**formula.new, "beta": "raised > (K)high ? (K)high : raised"}
    return _moved(BETA, formula, new, "K", TAG, "k")


def _moved(
    template: str, formula: Formula, new: dict[str, str], kind: str, tag: str, at: str
) -> str:
    """A template with the old numbers, the new ones, and the choice between them."""
    place = {name: f"p_{name if name == 'beta' else tag + name}[{at}]" for name in new}
    load = [f"const {kind} {tag}v_{name} = {place[name]};" for name in new]
    each = [f"const T {tag}n_{name} = (T)({value});" for name, value in new.items()]
    sound = " + ".join(f"{tag}n_{name} * 0" for name in new)
    each.append(f"const I {tag}sound = -({sound} == 0);\nheld |= ~{tag}sound;")
    store = [f"{at} = pick({tag}sound, {tag}n_{n}, (T){tag}v_{n});" for n, at in place.items()]
    parts = {"load": load, "each": formula.each, "new": each, "store": store}
    return fill(template, u=formula.u, **{k: "\n".join(v) for k, v in parts.items()}).strip()


class MetaProgram:
    """The compiled meta update of all blocks, in double precision.

    Raises:
        CannotTrace, CannotBuild: why there is none.
    """

    def __init__(self, rule: Rule, dtype: torch.dtype) -> None:
        head, formula = prelude(dtype), Formula(rule, "double", TAG)
        arguments = "".join(f"T *p_{name}, " for name in ("beta", *(TAG + x for x in rule.slots)))
        once = "\n".join(formula.once)
        text = fill(META, arguments=arguments, once=once, beta=_beta(formula))
        self.constants, self.slots = formula.constants, rule.slots
        kinds = "ll" + "p" * (10 + len(rule.slots))
        self.move = cc.declare(cc.load(head + text), "meta", kinds)
