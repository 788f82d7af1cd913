"""Four folders, one package: found from anywhere, whole when built."""

from __future__ import annotations

import ast
import configparser
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("clmeta", "clmeta.streams", "clmeta.strategies", "clmeta.analysis")


def python(code: str, cwd: Path, **environment: str) -> str:
    command = [sys.executable, "-c", code]
    env = {**os.environ, **environment}
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module", params=["root", "elsewhere"])
def files(request, tmp_path_factory) -> dict[str, list[str]]:
    """Of what is imported in a folder: the files of the parts, and of all modules of ours."""
    code = f"""
import importlib, json, os, sys
parts = [importlib.import_module(part).__file__ for part in {PARTS}]
files = [m.__file__ for m in list(sys.modules.values()) if getattr(m, "__file__", None)]
print(json.dumps({{"parts": parts, "all": [os.path.realpath(file) for file in files]}}))
"""
    folder = ROOT if request.param == "root" else tmp_path_factory.mktemp("elsewhere")
    return json.loads(python(code, folder))


FOLDERS = [ROOT / "clmeta", ROOT / "streams", ROOT / "strategies", ROOT / "analysis"]


def test_imports_lead_to_the_same_files_from_anywhere(files):
    assert [Path(file).resolve().parent for file in files["parts"]] == FOLDERS


def test_modules_have_one_name_only(files):
    """Were a module loaded twice under two names, its registry would exist twice."""
    ours = [f for f in files["all"] if any(Path(f).is_relative_to(folder) for folder in FOLDERS)]
    assert len(ours) == len(set(ours)) > 20


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """A wheel built from the files of the checkout."""
    pytest.importorskip("setuptools")
    folder = tmp_path_factory.mktemp("build")
    for name in ("clmeta", "streams", "strategies", "analysis"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=ignore)
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / name)
    code = "from setuptools.build_meta import build_wheel; print(build_wheel('dist'))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder / "dist" / done.stdout.strip().splitlines()[-1]


def test_a_wheel_holds_every_module_once(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        names = [n for n in archive.namelist() if n.endswith(".py")]
        archive.extractall(tmp_path / "installed")
    folders = {"clmeta": "clmeta", **{p.replace(".", "/"): p.split(".")[1] for p in PARTS[1:]}}
    expected = {
        f"{target}/{file.relative_to(ROOT / source)}"
        for target, source in folders.items()
        for file in (ROOT / source).rglob("*.py")
    }
    assert set(names) == expected
    assert len(names) == len(set(names))
    with zipfile.ZipFile(wheel) as archive:
        assert "clmeta/py.typed" in archive.namelist()
    code = f"import importlib\nfor part in {PARTS}: print(importlib.import_module(part).__file__)"
    found = python(code, tmp_path, PYTHONPATH=str(tmp_path / "installed"))
    assert all(Path(file).is_relative_to(tmp_path) for file in found.splitlines())


def test_the_wheel_says_what_it_is(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        (entries,) = (n for n in archive.namelist() if n.endswith("entry_points.txt"))
        text = archive.read(metadata).decode()
        assert "clmeta = clmeta.cli:main" in archive.read(entries).decode()
        assert any(n.endswith("LICENSE") for n in archive.namelist())
    assert re.search(r"^License(-Expression)?: MIT$", text, re.MULTILINE)
    assert "Requires-Python: >=3.10" in text
    assert re.search(r"^# clmeta", text, re.MULTILINE)


def test_every_import_is_a_declared_dependency():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    needs = [setup["options"]["install_requires"], *setup["options.extras_require"].values()]
    lines = "\n".join(needs).splitlines()
    declared = {re.split(r"[<>=;\[ ]", line)[0] for line in lines if line}
    names = {"avalanche": "avalanche-lib", "sklearn": "scikit-learn", "PIL": "pillow"}
    indirect = {"PIL", "typing_extensions"}  # torchvision's and torch's own needs
    newer = {"tomllib"}  # in the standard library of later Pythons than the oldest
    imported = set()
    for folder in ("clmeta", "streams", "strategies", "analysis"):
        for file in (ROOT / folder).glob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Import):
                    imported.update(alias.name.partition(".")[0] for alias in node.names)
                elif isinstance(node, ast.ImportFrom):
                    imported.add(str(node.module).partition(".")[0])
    outside = imported - set(sys.stdlib_module_names) - {"clmeta"} - indirect - newer
    assert {names.get(name, name) for name in outside} <= declared


def test_make_refuses_an_old_python_clearly(tmp_path):
    old = tmp_path / "python-old"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "Python 3.8.1" && exit 0\nexit 1\n')
    old.chmod(0o755)
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name in ("setup.cfg", "pyproject.toml"):
        (tmp_path / name).touch()
    command = ["make", f"PYTHON={old}", "demo"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert "clmeta needs Python 3.10 or newer" in done.stderr
    assert "is Python 3.8.1" in done.stderr
    assert not (tmp_path / ".venv").exists()
