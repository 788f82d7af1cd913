"""Imports stay light: what is slow to import is imported where it is used."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from reader_parts import ROOT

HEAVY = ("avalanche", "torchvision", "pandas", "matplotlib", "sklearn", "scipy", "pyarrow")
#: What a program does, one thing after another, and what it has not imported by then.
STAGES = {
    "import clmeta": ("torch", "numpy", *HEAVY),
    "clmeta.MetaOptimize, clmeta.Recorder": HEAVY,
    "import clmeta.streams": ("PIL", *HEAVY),
    "import clmeta.strategies as s; s.learn_online, s.STRATEGIES.names(), dir(s)": (
        *("avalanche", "torchvision", "matplotlib"),
    ),
    "from clmeta.runs.runner import run": ("avalanche", "torchvision", "matplotlib"),
    "run(config(stream_options={'tasks': 1, 'steps_per_task': 3}), sys.argv[1])": (
        *("avalanche", "torchvision", "matplotlib"),
    ),
}


@pytest.fixture(scope="module")
def imported(tmp_path_factory) -> dict[str, set[str]]:
    """What was imported after each stage of one program."""
    code = f"""
import json, sys
for stage in {list(STAGES)}:
    if stage.startswith("run("):
        from clmeta.runs.config import RunConfig as config
    exec(stage)
    print(json.dumps(sorted(name.partition(".")[0] for name in sys.modules)))
"""
    command = [sys.executable, "-c", code, str(tmp_path_factory.mktemp("light") / "run")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return dict(zip(STAGES, map(set, map(json.loads, done.stdout.splitlines())), strict=True))


@pytest.mark.parametrize("stage", STAGES)
def test_what_is_slow_is_imported_where_it_is_used(stage, imported):
    assert not imported[stage] & set(STAGES[stage])


def test_the_program_did_what_it_says(imported):
    assert "torch" in imported["clmeta.MetaOptimize, clmeta.Recorder"]
    assert "sklearn" in list(imported.values())[-1]


@pytest.mark.parametrize("words", [[], ["run"], ["demo"], ["plot"], ["list"]])
def test_help_loads_nothing_heavy(words):
    code = f"""
import sys
from clmeta.cli import main
try: main({[*words, "--help"]!r})
except SystemExit: pass
print(*{{name.partition(".")[0] for name in sys.modules}})
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    modules = set(done.stdout.splitlines()[-1].split())
    assert "click" in modules
    assert not modules & {"torch", "numpy", *HEAVY}
