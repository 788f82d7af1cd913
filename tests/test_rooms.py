"""How the modules are sorted: rooms in an order, imports that point one way, files of one page."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

import clmeta

ROOT = Path(__file__).resolve().parents[1]
MOST_LINES = 300
MOST_AT_THE_DOOR = 12


@cache
def modules() -> dict[str, Path]:
    """Dotted name to file, of the whole package; its root, which only opens doors, left out."""
    found = {}
    for folder in ("clmeta", "streams", "strategies", "analysis"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            if path != path.resolve():  # the links inside clmeta show the other folders again
                continue
            found[dotted(path)] = path
    del found["clmeta"], found["clmeta._version"]
    return found


@cache
def rooms() -> list[list[str]]:
    """The rows of CONTRIBUTING.md's table, first what all others stand on, as dotted names."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split("## Rooms")[1]
    rows = [row.split("|")[1] for row in re.findall(r"^\| `.*", text, re.M)]
    named = [re.findall(r"`([^`]+)`", row) for row in rows]
    return [[dotted(ROOT / place) for place in row] for row in named]


def dotted(path: Path) -> str:
    """What a file or folder of the checkout is imported as."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts if parts[0] == "clmeta" else ("clmeta", *parts)
    return ".".join(part for part in parts if part != "__init__")


def level(module: str) -> int:
    """The row of the table that a module stands in."""
    at = [
        number
        for number, row in enumerate(rooms())
        if any(f"{module}.".startswith(f"{place}.") for place in row)
    ]
    assert len(at) == 1, f"{module} stands in {len(at)} rooms of CONTRIBUTING.md"
    return at[0]


class Imports(ast.NodeVisitor):
    """What a module imports of the package, at its top, in functions, or by name as text."""

    def __init__(self, path: Path) -> None:
        self.found: dict[str, bool] = {}  #: Module to whether it is imported for its types only.
        self._types_only = False
        self.visit(ast.parse(path.read_text(encoding="utf-8")))

    def _add(self, module: str) -> None:
        if module in modules():
            self.found[module] = self._types_only and self.found.get(module, True)

    def visit_If(self, node: ast.If) -> None:
        before = self._types_only
        self._types_only = before or ast.unparse(node.test).endswith("TYPE_CHECKING")
        for each in node.body:
            self.visit(each)
        self._types_only = before
        for each in node.orelse:
            self.visit(each)

    def visit_Import(self, node: ast.Import) -> None:
        for name in node.names:
            self._add(name.name)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        for name in node.names:
            if node.module == "clmeta" and f"clmeta.{name.name}" not in modules():
                self._add(str(getattr(getattr(clmeta, name.name), "__module__", "")))
            inside = f"{node.module}.{name.name}"
            self._add(inside if inside in modules() else str(node.module))

    def visit_Constant(self, node: ast.Constant) -> None:
        if isinstance(node.value, str):
            self._add(node.value)


@cache
def imports() -> dict[str, dict[str, bool]]:
    return {module: Imports(path).found for module, path in modules().items()}


def test_the_table_names_what_there_is():
    places = {place for row in rooms() for place in row}
    assert places <= {*modules(), *(name.rpartition(".")[0] for name in modules())}


def test_imports_point_to_the_rooms_above():
    wrong = [
        f"{module} imports {other}"
        for module, imported in imports().items()
        for other in imported
        if level(other) > level(module)
    ]
    assert not wrong, "\n".join(sorted(wrong))


@pytest.mark.parametrize("start", sorted(modules()))
def test_no_module_leads_back_to_itself(start):
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        module = waiting.pop()
        for other, types_only in imports()[module].items():
            if not types_only and other != module and other not in seen:
                seen.add(other)
                waiting.append(other)
    assert start not in seen


def test_files_fit_a_page():
    long = {
        str(path.relative_to(ROOT))
        for path in modules().values()
        if len(path.read_text(encoding="utf-8").splitlines()) > MOST_LINES
    }
    assert not long


def test_the_door_is_not_crowded():
    public = [path for path in (ROOT / "clmeta").glob("*.py") if not path.name.startswith("_")]
    assert len(public) <= MOST_AT_THE_DOOR


def test_imports_are_seen_wherever_they_stand(tmp_path):
    """The reader itself, so that nothing passes because it was not seen."""
    (tmp_path / "module.py").write_text(
        "from typing import TYPE_CHECKING\n"
        "from clmeta import MetaOptimize, errors\n"
        "import clmeta.rules\n"
        "if TYPE_CHECKING:\n    from clmeta.streams import stream\n"
        "else:\n    from clmeta.general import engine\n"
        "def f():\n    from clmeta.sweep.best import best\n"
        "LAZY = {'runs': ('clmeta.runs.runner', 'run')}\n"
    )
    assert Imports(tmp_path / "module.py").found == {
        "clmeta.optim.optimizer": False,
        "clmeta.errors": False,
        "clmeta.rules": False,
        "clmeta.streams.stream": True,
        "clmeta.general.engine": False,
        "clmeta.sweep.best": False,
        "clmeta.runs.runner": False,
    }
