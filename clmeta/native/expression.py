"""Run a rule's own ``update`` on symbols, to find what it does to one number.

Symbols understand arithmetic and torch's elementwise functions. A rule that does anything else
(reads shapes, branches on values, sums) cannot be traced, and is called with tensors instead.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from clmeta.rules import Rule

CHOICE = "{} ? {} : {}"
COMPARISONS = ("{} > {}", "{} < {}", "{} >= {}", "{} <= {}")


class CannotTrace(Exception):
    """Why a rule is not a formula of one number at a time."""


@dataclass(frozen=True, eq=False)
class Symbol:
    """A node of the formula.

    Attributes:
        kind: ``"input"``, ``"constant"``, or the C template of an operation, such as ``{} * {}``.
        args: what the template takes; the C name of an input; the index of a constant.
        array: whether it differs between the numbers of a tensor.
        trace: the formula that it belongs to.
        boolean: whether it is true or false, and no number.
    """

    kind: str
    args: tuple[Any, ...]
    array: bool
    trace: Trace
    boolean: bool = False

    FUNCTIONS: ClassVar[dict[str, Callable[..., Symbol]]] = {}

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Symbol:
        return _call(getattr(function, "__name__", str(function)), *args, **(kwargs or {}))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name not in self.FUNCTIONS:
            raise CannotTrace(f"uses .{name}")
        return lambda *args, **options: _call(name, self, *args, **options)

    def _refuse(self, *_: Any) -> Any:
        raise CannotTrace("branches on a value, or changes one in place")

    # Python would answer == by identity, and turn += into a new value that the rule's state misses.
    __bool__ = __float__ = __int__ = __index__ = __iter__ = __len__ = _refuse
    __eq__ = __ne__ = __hash__ = __contains__ = __getitem__ = __setitem__ = _refuse
    __iadd__ = __isub__ = __imul__ = __itruediv__ = __ipow__ = _refuse

    def __add__(self, other: Any) -> Symbol:
        return _call("add", self, other)

    def __radd__(self, other: Any) -> Symbol:
        return _call("add", other, self)

    def __sub__(self, other: Any) -> Symbol:
        return _call("sub", self, other)

    def __rsub__(self, other: Any) -> Symbol:
        return _call("sub", other, self)

    def __mul__(self, other: Any) -> Symbol:
        return _call("mul", self, other)

    def __rmul__(self, other: Any) -> Symbol:
        return _call("mul", other, self)

    def __truediv__(self, other: Any) -> Symbol:
        return _call("div", self, other)

    def __rtruediv__(self, other: Any) -> Symbol:
        return _call("div", other, self)

    def __pow__(self, other: Any) -> Symbol:
        return _call("pow", self, other)

    def __rpow__(self, other: Any) -> Symbol:
        return _call("pow", other, self)

    def __neg__(self) -> Symbol:
        return _call("neg", self)

    def __abs__(self) -> Symbol:
        return _call("abs", self)

    def __gt__(self, other: Any) -> Symbol:
        return _call("gt", self, other)

    def __lt__(self, other: Any) -> Symbol:
        return _call("lt", self, other)

    def __ge__(self, other: Any) -> Symbol:
        return _call("ge", self, other)

    def __le__(self, other: Any) -> Symbol:
        return _call("le", self, other)


class Trace:
    """One formula's constants, which are arguments of the program and not part of its text."""

    def __init__(self) -> None:
        self.constants: list[float] = []

    def input(self, name: str, array: bool = True) -> Symbol:
        """A value that the program is given, in a C variable ``v_name``."""
        return Symbol("input", (f"v_{name}",), array, self)

    def symbol(self, value: Any) -> Symbol:
        """A symbol as it is, a number as a constant."""
        if isinstance(value, Symbol):
            return value
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise CannotTrace(f"uses a {type(value).__name__}")
        self.constants.append(float(value))
        return Symbol("constant", (len(self.constants) - 1,), False, self)

    def op(self, template: str, *args: Any) -> Symbol:
        """An operation on symbols and numbers."""
        symbols = tuple(self.symbol(x) for x in args)
        logical = [x.boolean for x in symbols]
        if template == CHOICE:
            allowed = logical == [True, False, False]
        elif template == "{} * {}":
            allowed = True
        else:
            allowed = not any(logical)
        if not allowed:
            raise CannotTrace("does arithmetic with true and false")
        boolean = template in COMPARISONS or all(logical)
        return Symbol(template, symbols, any(x.array for x in symbols), self, boolean)


def _call(name: str, *args: Any, **options: Any) -> Symbol:
    made = Symbol.FUNCTIONS.get(name.strip("_"))
    if made is None or name.endswith("_"):
        raise CannotTrace(f"uses torch.{name}")
    try:
        return made(*args, **options)
    except TypeError as error:
        raise CannotTrace(f"uses torch.{name} with other arguments") from error


def _of(*args: Any) -> Trace:
    return next(x.trace for x in args if isinstance(x, Symbol))


def _define(template: str, *names: str) -> None:
    def apply(*args: Any) -> Symbol:
        if len(args) != template.count("{}"):
            raise CannotTrace(f"uses torch.{names[0]} with {len(args)} arguments")
        return _of(*args).op(template, *args)

    for name in names:
        Symbol.FUNCTIONS[name] = apply


# F is the C suffix of functions: "f" for float, nothing for double.
for _template, _names in {
    "{} * {}": "mul multiply",
    "{} / {}": "div divide true_divide",
    "-{}": "neg negative",
    "sqrtF({})": "sqrt",
    "fabsF({})": "abs absolute",
    "expF({})": "exp",
    "expm1F({})": "expm1",
    "logF({})": "log",
    "log1pF({})": "log1p",
    "tanhF({})": "tanh",
    "signF({})": "sign sgn",
    "maximumF({}, {})": "maximum",
    "minimumF({}, {})": "minimum",
    "fmaxF({}, {})": "fmax",
    "fminF({}, {})": "fmin",
    "{} > {}": "gt greater",
    "{} < {}": "lt less",
    "{} >= {}": "ge greater_equal",
    "{} <= {}": "le less_equal",
    CHOICE: "where",
}.items():
    _define(_template, *_names.split())


def _function(name: str) -> Callable[[Callable[..., Symbol]], Callable[..., Symbol]]:
    def register(made: Callable[..., Symbol]) -> Callable[..., Symbol]:
        Symbol.FUNCTIONS[name] = made
        return made

    return register


@_function("add")
def _add(a: Any, b: Any, alpha: Any = 1) -> Symbol:
    return _of(a, b).op("{} + {}", a, b if _is(alpha, 1) else alpha * b)


@_function("sub")
def _sub(a: Any, b: Any, alpha: Any = 1) -> Symbol:
    return _of(a, b).op("{} - {}", a, b if _is(alpha, 1) else alpha * b)


@_function("pow")
def _pow(a: Any, b: Any) -> Symbol:
    if _is(b, 2):
        return a * a
    return _call("sqrt", a) if _is(b, 0.5) else _of(a, b).op("powF({}, {})", a, b)


@_function("square")
def _square(a: Any) -> Symbol:
    return a * a


@_function("reciprocal")
def _reciprocal(a: Any) -> Symbol:
    return 1 / a


@_function("rsqrt")
def _rsqrt(a: Any) -> Symbol:
    return 1 / a.sqrt()


@_function("lerp")
def _lerp(a: Any, b: Any, weight: Any) -> Symbol:
    # As torch does: exact at both ends.
    if isinstance(weight, float | int) and weight >= 0.5:
        return b - (b - a) * (1 - weight)
    return a + weight * (b - a)


@_function("addcmul")
def _addcmul(a: Any, b: Any, c: Any, value: Any = 1) -> Symbol:
    return a + (b * c if _is(value, 1) else value * b * c)


@_function("addcdiv")
def _addcdiv(a: Any, b: Any, c: Any, value: Any = 1) -> Symbol:
    return a + (b / c if _is(value, 1) else value * b / c)


@_function("clamp")
def _clamp(a: Any, min: Any = None, max: Any = None) -> Symbol:
    a = a if min is None else _call("maximum", a, min)
    return a if max is None else _call("minimum", a, max)


def _is(value: Any, number: float) -> bool:
    return isinstance(value, int | float) and value == number


@dataclass(frozen=True)
class Formula:
    """A rule for one number.

    Attributes:
        trace: its constants.
        u: the direction.
        new: next state, slot by slot.
    """

    trace: Trace
    u: Symbol
    new: dict[str, Symbol]


def trace_rule(rule: Rule, tag: str = "") -> Formula:
    """The formula of a rule's ``update`` in the inputs g, t and its slots, named after ``tag``.

    Raises:
        CannotTrace: saying what the rule does beyond it.
    """
    trace = Trace()
    if not all(name.isidentifier() and name.isascii() for name in rule.slots):
        raise CannotTrace(f"has slots {rule.slots}")
    state = {name: trace.input(tag + name) for name in rule.slots}
    t: Any = trace.input(f"{tag}t", array=False)
    try:
        u, new = rule.update(trace.input(f"{tag}g"), dict(state), t)
        symbols = {name: trace.symbol(new[name]) for name in rule.slots}
        return Formula(trace, trace.symbol(u), symbols)
    except CannotTrace:
        raise
    except Exception as error:  # whatever a rule's own code does with a symbol
        raise CannotTrace(f"{type(error).__name__}: {error}") from error
