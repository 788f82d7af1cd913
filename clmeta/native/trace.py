"""What a rule does to one number, as C: its own ``update`` is run on torch.fx's proxies.

A rule that does anything but arithmetic and torch's elementwise functions (reads shapes, branches
on values, sums) cannot be traced, and is called with tensors instead. Proxies do not notice
everything (a state changed in place, a table looked up by t): a program is compared with its rule
before use.
"""

from __future__ import annotations

import dataclasses
import functools
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from clmeta.rules import Rule


class CannotTrace(Exception):
    """Why a rule is not a formula of one number at a time."""


CHOICE = "{} ? {} : {}"
COMPARISONS = ("{} > {}", "{} < {}", "{} >= {}", "{} <= {}")
#: The C of each operation, by torch's names for it; F is the suffix of float functions.
TEMPLATES = {
    name: template
    for template, names in {
        "{} + {}": "add",
        "{} - {}": "sub subtract",
        "{} * {}": "mul multiply",
        "{} / {}": "truediv div divide true_divide",
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
        "powF({}, {})": "pow",
        "{} > {}": "gt greater",
        "{} < {}": "lt less",
        "{} >= {}": "ge greater_equal",
        "{} <= {}": "le less_equal",
        CHOICE: "where",
    }.items()
    for name in names.split()
}


@dataclass(frozen=True)
class Value:
    """A C expression: whether it differs between the numbers of a tensor, and is true or false."""

    text: str
    array: bool
    boolean: bool = False
    number: float | None = None


class Formula:
    """A rule in C: statements to run once and for each number, and what they lead to.

    Args:
        rule: one whose options can't change between steps.
        kind: ``"float"`` or ``"double"``, the type to compute arrays in. What depends on t and
            options alone is computed once, in double precision.
        tag: what all names begin with; the inputs are ``{tag}v_g``, ``{tag}v_t`` and a
            ``{tag}v_SLOT`` each, the options an array ``{tag}c``.

    Attributes:
        once, each: the statements before the loop over numbers, and inside it.
        u, new: names of the direction and of each slot's next value.
        constants: the rule's options, as the program takes them.

    Raises:
        CannotTrace: saying what the rule does beyond a formula.
    """

    def __init__(self, rule: Rule, kind: str = "double", tag: str = "") -> None:
        self.kind, self.tag, self.suffix = kind, tag, "f" if kind == "float" else ""
        self.once: list[str] = []
        self.each: list[str] = []
        self.constants = array("d")
        graph, results = _trace(rule)
        values: dict[fx.Node, Value] = {}
        for node in graph.nodes:
            if node.op == "placeholder":
                name = str(node.target)
                values[node] = Value(f"{tag}v_{name}", array=name != "t")
            else:
                values[node] = self._apply(node, lambda x: _look_up(x, values))
        outputs = [_look_up(x, values) for x in results]
        if any(x.boolean for x in outputs):
            raise CannotTrace("gives true and false for numbers")
        self.u, *new = (self._operand(x, True) for x in outputs)
        self.new = dict(zip(rule.slots, new, strict=True))
        self.constants = self.constants or array("d", [0.0])

    def _apply(self, node: fx.Node, value: Callable[[Any], Value]) -> Value:
        name = node.target if isinstance(node.target, str) else node.target.__name__
        if node.op not in ("call_function", "call_method"):
            raise CannotTrace(f"uses .{node.args[1] if node.op == 'get_attr' else name}")
        if name == "getattr":
            raise CannotTrace(f"uses .{node.args[1]}")
        args, options = [value(x) for x in node.args], {k: value(x) for k, x in node.kwargs.items()}
        try:
            if name in SEVERAL:
                return SEVERAL[name](self._op, *args, **options)
            if name in TEMPLATES and not options:
                return self._op(name, *args)
        except TypeError as error:
            raise CannotTrace(f"uses torch.{name} with other arguments") from error
        shown = f".{name}" if node.op == "call_method" else f"torch.{name}"
        raise CannotTrace(f"uses {shown}" + (" with options" if name in TEMPLATES else ""))

    def _op(self, name: str, *args: Value | float) -> Value:
        """An operation's result as a variable of its own."""
        template = TEMPLATES[name]
        values = [x if isinstance(x, Value) else Value("", False, number=float(x)) for x in args]
        if len(values) != template.count("{}"):
            raise CannotTrace(f"uses torch.{name} with {len(values)} arguments")
        logical = [x.boolean for x in values]
        allowed = template == "{} * {}" or not any(logical)
        if template == CHOICE:
            allowed = logical == [True, False, False]
        if not allowed:
            raise CannotTrace("does arithmetic with true and false")
        boolean = template in COMPARISONS or all(logical)
        is_array = any(x.array for x in values)
        if template == "{} / {}" and is_array and not values[1].array:
            # A product with the inverse, which is computed once.
            template, values = "{} * {}", [values[0], self._op("truediv", 1.0, values[1])]
        text = template.format(*(self._operand(x, is_array) for x in values))
        lines = self.each if is_array else self.once
        text = text.replace("F(", f"{self.suffix}(" if is_array else "(")
        variable = f"{self.tag}{'x' if is_array else 'k'}{len(lines)}"
        lines.append(f"const {self.kind if is_array else 'double'} {variable} = {text};")
        return Value(variable, is_array, boolean)

    def _operand(self, value: Value, for_array: bool) -> str:
        """A value's C text, in the arrays' precision where it meets them."""
        text = value.text
        if value.number is not None:  # one of the constants
            self.constants.append(value.number)
            text = f"{self.tag}c[{len(self.constants) - 1}]"
        return f"({self.kind}){text}" if for_array and not value.array else text


def _look_up(x: Any, values: dict[fx.Node, Value]) -> Value:
    if isinstance(x, fx.Node):
        return values[x]
    if isinstance(x, bool) or not isinstance(x, int | float):
        raise CannotTrace(f"uses a {type(x).__name__}")
    return Value("", False, number=float(x))


def may_change(rule: Rule) -> bool:
    """Whether a rule's attributes could be others at its next call."""
    fields = {field.name for field in dataclasses.fields(rule)}
    fixed = all(isinstance(x, bool | int | float | str | None) for x in vars(rule).values())
    frozen = type(rule).__dataclass_params__.frozen  # type: ignore[attr-defined]
    return not (fixed and frozen and vars(rule).keys() <= fields)


def _trace(rule: Rule) -> tuple[fx.Graph, list[Any]]:
    """The graph of ``update`` in g, t and the slots, and its results: u and each next state."""
    if may_change(rule):
        raise CannotTrace("its attributes may change")
    if not all(name.isidentifier() and name.isascii() for name in rule.slots):
        raise CannotTrace(f"has slots {rule.slots}")
    tracer = fx.Tracer()
    tracer.root, tracer.graph = nn.Module(), fx.Graph(tracer_cls=fx.Tracer)
    g, t, *old = (
        tracer.create_proxy("placeholder", name, (), {}) for name in ("g", "t", *rule.slots)
    )
    try:
        count: Any = t
        u, new = rule.update(g, dict(zip(rule.slots, old, strict=True)), count)
        results = [u, *(new[name] for name in rule.slots)]
    except Exception as error:  # whatever a rule's own code does with a proxy
        raise CannotTrace(f"{type(error).__name__}: {error}") from error
    return tracer.graph, [x.node if isinstance(x, fx.Proxy) else x for x in results]


Op = Callable[..., Value]


def _is(x: Any, number: float) -> bool:
    return (x.number if isinstance(x, Value) else x) == number


def _scaled(name: str) -> Callable[..., Value]:
    def apply(op: Op, a: Value, b: Value, alpha: Any = 1) -> Value:
        return op(name, a, b if _is(alpha, 1) else op("mul", alpha, b))

    return apply


def _pow(op: Op, a: Value, b: Value) -> Value:
    if _is(b, 2):
        return op("mul", a, a)
    return op("sqrt", a) if _is(b, 0.5) else op("pow", a, b)


def _lerp(op: Op, a: Value, b: Value, weight: Value) -> Value:
    # As torch does: exact at both ends.
    way = op("sub", b, a)
    if weight.number is not None and weight.number >= 0.5:
        return op("sub", b, op("mul", way, 1 - weight.number))
    return op("add", a, op("mul", weight, way))


def _plus_scaled(name: str) -> Callable[..., Value]:
    def apply(op: Op, a: Value, b: Value, c: Value, value: Any = 1) -> Value:
        return op("add", a, op(name, b if _is(value, 1) else op("mul", value, b), c))

    return apply


def _clamp(op: Op, a: Value, min: Any = None, max: Any = None) -> Value:
    a = a if min is None else op("maximum", a, min)
    return a if max is None else op("minimum", a, max)


#: Operations made of several.
SEVERAL: dict[str, Callable[..., Value]] = {
    "add": _scaled("add"),
    "sub": _scaled("sub"),
    "pow": _pow,
    "square": lambda op, a: op("mul", a, a),
    "reciprocal": lambda op, a: op("truediv", 1.0, a),
    "rsqrt": lambda op, a: op("truediv", 1.0, op("sqrt", a)),
    "lerp": _lerp,
    "addcmul": _plus_scaled("mul"),
    "addcdiv": _plus_scaled("truediv"),
    "clamp": _clamp,
    "clip": _clamp,
}


def elementwise(rule: Rule) -> bool:
    """Whether a rule is a formula of each number alone."""
    try:
        return _elementwise(rule)
    except TypeError:  # it can't be hashed, so it may change
        return False


@functools.cache
def _elementwise(rule: Rule) -> bool:
    return is_formula(rule) is None


def is_formula(rule: Rule) -> str | None:
    """None where a rule is a formula of each number alone, or else what it does beyond."""
    try:
        Formula(rule)
    except CannotTrace as reason:
        return str(reason)
    return None
