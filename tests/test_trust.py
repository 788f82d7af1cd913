"""Folders and files of a stranger: what is read loads none of their code, what is run asks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from clmeta.analysis import load_runs
from clmeta.errors import BadArgument
from clmeta.runs.config import RunConfig
from clmeta.sweep.best import best
from clmeta.sweep.spec import SweepSpec

QUICK = ("-s", "tasks=2", "-s", "steps_per_task=20", "-m", "hidden=8")
EVIL = """
from pathlib import Path
Path({marker!r}).touch()
import torch
def net(input_shape, n_classes):
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, n_classes))
"""


@pytest.fixture
def evil(tmp_path):
    """A module ``evil`` in the working folder, and the file that is there once it was loaded."""
    marker = tmp_path.with_name(f"{tmp_path.name}-loaded")
    (tmp_path / "evil.py").write_text(EVIL.format(marker=str(marker)))
    yield marker
    sys.modules.pop("evil", None)


#: Options that load code, each in its own way; the last entries call what is installed anyhow.
LOADING = [
    {"model": "evil:net"},
    {"stream": "evil:net"},
    {"dataset": "evil:net"},
    {"strategy": "evil:net"},
    {"base": "evil:net"},
    {"meta": "evil:net"},
    {"blocks": "evil:net"},
    {"engine": "evil:net"},
    {"imports": ["evil"]},
    {"stream_options": {"augment": "evil:net"}},
    {"dataset": "joblib:load", "data_root": "evil.pkl"},
    {"dataset": "runpy:run_path", "data_root": "evil.py"},
    {"dataset": "clmeta.native.cc:subprocess.call", "data_root": "evil.py"},
]


@pytest.mark.parametrize("options", LOADING, ids=str)
@pytest.mark.parametrize("form", ["run", "spec", "grid", "list"])
def test_code_named_in_a_file_is_loaded_only_if_trusted(cli, tmp_path, evil, options, form):
    content = {
        "run": options,
        "spec": {"run": options},
        "grid": {"grid": {name: [value] for name, value in options.items()}},
        "list": {"runs": [options, {}]},
    }[form]
    (tmp_path / "file.json").write_text(json.dumps(content))
    code, out, err = cli("sweep", "file.json", "--dry-run")
    assert code == 2 and out == "" and err.count("\n") == 1
    assert err.startswith("error: ") and "file.json" in err and "give --trust" in err
    assert not evil.exists()


def test_who_trusts_a_file_says_so_and_worker_processes_do_as_told(cli, tmp_path, evil):
    assert cli("run", *QUICK[:4], "--model", "evil:net", "-o", "a")[0] == 0, "typed: the user's own"
    evil.unlink()
    sys.modules.pop("evil")
    assert "model='evil:net' loads the module 'evil'" in cli("run", "-c", "a/seed-0", "-o", "b")[2]
    assert not evil.exists() and not (tmp_path / "b").exists()
    words = ("run", "-c", "a/seed-0", "--seeds", "0-1", "-o", "b")
    assert cli(*words, "--import", "evil", "--dry-run")[0] == 0, "its module was typed"
    assert evil.exists()
    code, _, err = cli(*words, "--trust", "-j", "2")
    assert code == 0, err


def test_in_python_a_file_is_trusted_by_an_argument(tmp_path):
    (tmp_path / "config.json").write_text('{"model": "evil:net"}')
    for read in (RunConfig.from_file, SweepSpec.from_file):
        with pytest.raises(BadArgument, match="in Python trust=True"):
            read(tmp_path)
    assert RunConfig.from_file(tmp_path, trust=True).model == "evil:net"
    assert RunConfig.from_json('{"model": "evil:net"}').model == "evil:net", "text is the caller's"


@pytest.mark.parametrize(
    "options",
    [
        {"base": "torch.optim:AdamW"},
        {"name": "fixed:adam", "data_root": "a:b"},
        {"blocks": {"a": ["hidden"], "b": "*"}, "alpha0": {"a": 1e-3}},
    ],
    ids=str,
)
def test_what_names_no_code_of_its_own_needs_no_trust(tmp_path, options):
    (tmp_path / "config.json").write_text(json.dumps(options))
    assert RunConfig.from_file(tmp_path) == RunConfig(**options)


@pytest.mark.parametrize(
    ("line", "refused"),
    [
        ('partition = "gpu"', False),
        ("mem_gb = 8", False),
        ('setup = ["curl evil"]', True),
        ('python = "./evil"', True),
        ('comment = "x\\ncurl evil"', True),
        ('account = "a;b"', True),
    ],
)
def test_options_of_a_cluster_that_run_commands_are_asked_for_too(tmp_path, line, refused):
    (tmp_path / "sweep.toml").write_text(f"[slurm]\n{line}\n")
    if not refused:
        assert SweepSpec.from_file(tmp_path / "sweep.toml").slurm
        return
    with pytest.raises(BadArgument, match=r"slurm\.\w+ can run commands"):
        SweepSpec.from_file(tmp_path / "sweep.toml")
    assert SweepSpec.from_file(tmp_path / "sweep.toml", trust=True).slurm


@pytest.fixture
def strangers(cli, tmp_path, evil):
    """A finished sweep whose configs name code in every place, beside modules of likely names."""
    assert cli("sweep", *QUICK, "--grid", "alpha0=1e-4,1e-3", "-j", "1", "-o", "theirs")[0] == 0
    for file in (tmp_path / "theirs").rglob("config.json"):
        config = json.loads(file.read_text())
        config |= {"model": "evil:net", "imports": ["evil"], "name": "\x1b[2Jours[/]\x07"}
        file.write_text(json.dumps(config | {"method": config["name"]}))
    for name in ("numexpr", "bottleneck", "submitit", "usercustomize"):
        (tmp_path / f"{name}.py").write_text((tmp_path / "evil.py").read_text())
    return tmp_path


def test_reading_anybodys_folder_loads_nothing_of_it(cli, strangers, evil):
    for words in (
        ("plot", "theirs", "-f", "png", "-p", "trajectories"),
        ("best", "theirs"),
        ("list", "models"),
    ):
        code, out, err = cli(*words)
        assert code == 0, err
        assert "\x1b" not in out + err and "\x07" not in out + err
    assert len(load_runs("theirs")) == 80 and best("theirs")
    assert not evil.exists() and str(strangers) not in sys.path


def test_nor_is_code_of_the_working_folder_taken_for_a_librarys(strangers, evil):
    script = Path(sys.executable).with_name("clmeta")
    if not script.exists():
        pytest.skip("clmeta is not installed as a command")
    environment = {**os.environ, "COLUMNS": "200"}
    done = subprocess.run(
        [script, "best", "theirs"], cwd=strangers, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0 and "best alpha0" in done.stdout, done.stderr
    assert not evil.exists()
