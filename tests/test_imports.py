"""Names that a module of one's own registers, from Python, the command line and its processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from reader_parts import Task

from clmeta.errors import BadArgument
from clmeta.runs.config import RunConfig
from clmeta.runs.runner import prepare
from clmeta.sweep.spec import SweepSpec

MINE = '''
"""A rule, a stream and a metric of one's own."""

from dataclasses import dataclass

import torch
from clmeta.analysis.plots import plot
from clmeta.models import MODELS
from clmeta.rules import RULES, Rule
from clmeta.streams import STREAMS, permuted_inputs
from clmeta.sweep.metrics import metric


@RULES.register("halfsign")
@dataclass(frozen=True)
class HalfSign(Rule):
    """u = sign(g) / 2."""

    scale: float = 0.5
    differentiable = False

    def update(self, g, state, t):
        return self.scale * torch.sign(g), state


@STREAMS.register("two-tasks")
def two_tasks(data, steps_per_task=20, **common):
    """Two permutations."""
    return permuted_inputs(data, 2, steps_per_task=steps_per_task, **common)


@MODELS.register("tiny")
def tiny(input_shape, n_classes):
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, n_classes))


@metric("steps")
def steps(folder):
    """How many steps there were."""
    return float(folder.summary["steps"])


@plot("first-loss")
def first_loss(runs, ax):
    """The first loss."""
    ax.plot(runs["loss"].iloc[:1])
    return ax
'''


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A folder with the module ``my_things``."""
    (tmp_path / "my_things.py").write_text(MINE)
    return tmp_path


RUN = ["--import", "my_things", "--stream", "two-tasks", "--base", "halfsign", "--model", "tiny"]


@pytest.fixture
def typed(reader, mine):
    """Does a command in the module's folder, or another one."""

    def do(*words: str, folder: Path = mine) -> Task:
        environment = {"COLUMNS": "200", "CLMETA_CACHE": str(mine / "cache")}
        return reader.do(folder, ["clmeta", *words], **environment)

    return do


def test_names_of_a_module_reach_processes_and_are_found_again(typed, mine):
    done = typed("run", *RUN, "--seeds", "0-1", "-j", "2", "-o", "a")
    assert done.status == 0, done.err()
    assert "halfsign/adam scalar" in done.out()
    config = json.loads((mine / "a" / "seed-0" / "config.json").read_text())
    assert config["imports"] == ["my_things"]
    assert typed("run", "-c", "a/seed-0", "--trust", "-o", "b").status == 0
    done = typed(
        "sweep", *RUN, "--seeds", "0-1", "-j", "1", "--grid", "alpha0=1e-3,1e-2", "-o", "c"
    )
    assert done.status == 0, done.err()
    assert len(list((mine / "c").glob("halfsign-adam-*/summary.json"))) == 4


def test_other_commands_know_names_of_a_module_too(typed, mine):
    done = typed("run", *RUN, "-o", "a")
    assert done.status == 0, done.err()
    more = ("--import", "my_things")
    done = typed("best", "a", "--metric", "steps", *more)
    assert "no method has runs with two values" in done.err(), "the metric is known"
    done = typed("plot", "a", "-p", "first-loss", "-f", "png", *more)
    assert (mine / "figures" / "first-loss.png").exists(), done.err()
    listed = typed("list", "rules", *more).out()
    assert "halfsign" in listed and "scale=0.5" in listed
    assert "halfsign" not in typed("list", "rules").out()


def test_a_config_that_needs_a_module_says_so_where_it_is_missing(typed, mine):
    done = typed("run", *RUN, "-o", "a")
    assert done.status == 0, done.err()
    elsewhere = mine / "elsewhere"
    elsewhere.mkdir()
    done = typed("run", "--trust", "-c", str(mine / "a" / "seed-0"), folder=elsewhere)
    assert done.status == 2
    (line,) = done.err().splitlines()
    assert "--import='my_things': there is no module 'my_things'; install it, or run where" in line
    assert "it registers names that are used here" in line
    done = typed("run", *RUN[2:], folder=elsewhere)
    assert "unknown stream" in done.err()
    assert done.err().strip().endswith("--import loads a module that registers names")


#: The command line as its users start it: not from the folder of its working directory.
SCRIPT = Path(sys.executable).with_name("clmeta")
START = [SCRIPT] if SCRIPT.exists() else [sys.executable, "-m", "clmeta"]


def test_a_module_that_fails_is_no_traceback(tmp_path):
    (tmp_path / "broken_things.py").write_text("1 / 0\n")
    command = [*START, "run", "--import", "broken_things"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert "ZeroDivisionError: division by zero" in done.stderr
    assert "Traceback" not in done.stderr


def test_from_python_a_config_imports_what_it_needs(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "my_stream.py").write_text(
        "from clmeta.streams import STREAMS, permuted_inputs\n"
        "@STREAMS.register('pair')\ndef pair(data, **common):\n"
        "    'Two.'\n    return permuted_inputs(data, 2)\n"
    )
    config = RunConfig(stream="pair", imports=["my_stream"])
    assert config.imports == ("my_stream",)
    assert prepare(config).stream.n_tasks == 2
    assert config.key() == RunConfig(stream="pair").key()
    with pytest.raises(BadArgument, match="imports='no_such': there is no module 'no_such'"):
        prepare(RunConfig(imports=["no_such"]))
    with pytest.raises(BadArgument, match="imports='x': must be a list of names"):
        RunConfig(imports="x")


def test_modules_to_import_add_up():
    spec = SweepSpec({"imports": ["json"]}, methods=[{"imports": ["math"]}, {}])
    spec = spec.changed({"imports": ["string"]}, {}, None)
    assert [set(config.imports) for config in spec.configs()] == [
        {"json", "math", "string"},
        {"json", "string"},
    ]


def test_tasks_of_a_cluster_import_it_too(reader, mine):
    pytest.importorskip("submitit", reason="pip install 'clmeta[slurm]'")
    code = """
import warnings

warnings.simplefilter("ignore")  # submitit's own

from pathlib import Path
from clmeta.runs.config import RunConfig
from clmeta.sweep.cluster import ClusterLauncher
from clmeta.sweep.run import run_sweep

out = Path("tasks")
config = RunConfig(stream="two-tasks", base="halfsign", model="tiny", imports=["my_things"])
result = run_sweep([config], out, launcher=ClusterLauncher(out, cluster="local"))
print(result.failed, len(result.folders))
"""
    path = os.pathsep.join([str(mine), os.environ.get("PYTHONPATH", "")])
    done = reader.do(mine, ["python", code], PYTHONPATH=path)
    assert done.out().strip() == "{} 1", done.err()
