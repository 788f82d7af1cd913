"""Docstrings, comments and messages name only pages that whoever reads them has."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("clmeta", "streams", "strategies", "analysis", "benchmarks", "docs", "tests")
PAGE = re.compile(r"[\w./-]*\w\.md\b")
#: Pages that clmeta itself writes.
WRITTEN = {"table.md"}


def files() -> list[str]:
    found = {path.resolve() for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")}
    return sorted(str(path.relative_to(ROOT)) for path in found)


def texts(file: str) -> list[str]:
    """Comments and docstrings; of what users run, all other text as well."""
    source = (ROOT / file).read_text(encoding="utf-8")
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    said = [token.string for token in tokens if token.type == tokenize.COMMENT]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
            said.append(ast.get_docstring(node) or "")
        is_text = isinstance(node, ast.Constant) and isinstance(node.value, str)
        if is_text and not file.startswith(("tests/", "benchmarks/")):
            said.append(node.value)
    return said


def missing(file: str) -> set[str]:
    named = {page for text in texts(file) for page in PAGE.findall(text)}
    return {page for page in named if page not in WRITTEN and not (ROOT / page).is_file()}


@pytest.mark.parametrize("file", files())
def test_every_page_that_is_named_is_there(file):
    assert not missing(file)
