"""Write a formula down as C: what depends on numbers and counts alone once, in double precision."""

from __future__ import annotations

from collections.abc import Iterable

from clmeta.native.expression import Symbol


class Writer:
    """C statements that compute symbols: once those that are not arrays, per number the others.

    Args:
        kind: ``"float"`` or ``"double"``, the type to compute arrays in.
        tag: what all names begin with; the constants are in an array ``{tag}c``.

    Attributes:
        once, each: the statements before the loop over numbers, and inside it.
    """

    def __init__(self, kind: str, tag: str = "") -> None:
        self.kind, self.tag = kind, tag
        self.suffix = "f" if kind == "float" else ""
        self.once: list[str] = []
        self.each: list[str] = []
        self._names: dict[int, tuple[Symbol, str]] = {}  # held, so that an id means one symbol

    def value(self, symbol: Symbol) -> str:
        """The C name of a symbol's value inside the loop over numbers."""
        if symbol.array and symbol.kind == "input":
            return str(symbol.args[0])
        if id(symbol) not in self._names:
            name = self._array(symbol) if symbol.array else self._once(symbol)
            self._names[id(symbol)] = symbol, name
        return self._names[id(symbol)][1]

    def _once(self, symbol: Symbol) -> str:
        name = f"{self.tag}k{len(self.once)}"
        self.once.append(f"const {self.kind} {name} = {self._scalar(symbol)};")
        return name

    def _array(self, symbol: Symbol) -> str:
        kind, args = symbol.kind, symbol.args
        if kind == "{} / {}" and not args[1].array:
            # A product with the inverse, which is computed once.
            kind, args = "{} * {}", (args[0], args[1].trace.op("{} / {}", 1, args[1]))
        text = self._text(kind, [self.value(x) for x in args], self.suffix)
        name = f"{self.tag}x{len(self.each)}"
        self.each.append(f"const {self.kind} {name} = {text};")
        return name

    def _scalar(self, symbol: Symbol) -> str:
        if symbol.kind == "input":
            return str(symbol.args[0])
        if symbol.kind == "constant":
            return f"{self.tag}c[{symbol.args[0]}]"
        return f"({self._text(symbol.kind, [self._scalar(x) for x in symbol.args], '')})"

    @staticmethod
    def _text(kind: str, args: Iterable[str], suffix: str) -> str:
        return kind.replace("F(", f"{suffix}(").format(*args)
