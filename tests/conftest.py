"""Shared fixtures."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from reader_parts import LIBRARIES, Reader

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"


@pytest.fixture(autouse=True, scope="session")
def one_code():
    """Processes that tests start run this checkout, though another one may be installed."""
    where = [sys.executable, "-c", "import clmeta; print(clmeta.__file__)"]
    found = subprocess.run(where, cwd="/", capture_output=True, text=True).stdout.strip()
    if not found or Path(found).resolve().parents[1] != ROOT:
        before = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), before]))


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Networks here are small; threads would only fight over two cores."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The developers' data folder beside the checkout; tests that need it skip without it."""
    if not (SHARED / "data").is_dir():
        pytest.skip("the developers' data folder is not beside this checkout")
    return SHARED


@pytest.fixture(scope="session")
def readers() -> Iterator[Callable[..., Reader]]:
    """Starts a process that does what a user types, with libraries beside ours, or gives the one
    that was started before."""
    made: dict[tuple[str, ...], Reader] = {}

    def find(*libraries: str) -> Reader:
        if libraries not in made or not made[libraries].alive:
            made[libraries] = Reader(*LIBRARIES, *libraries)
        return made[libraries]

    yield find
    for each in made.values():
        each.close()


@pytest.fixture
def reader(readers) -> Reader:
    """A process that does what a user types."""
    return readers()


@pytest.fixture
def cli(tmp_path, monkeypatch, capsys) -> Callable[..., tuple[int, str, str]]:
    """Calls the command line in an empty folder: exit code, standard output, standard error."""
    from clmeta.cli.app import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("CLMETA_CACHE", str(tmp_path.with_name(f"{tmp_path.name}-cache")))

    def call(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(list(arguments))
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    return call
