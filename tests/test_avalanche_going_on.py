"""Runs under Avalanche's strategies that were killed go on bit for bit."""

from __future__ import annotations

import os
import stat

import avalanche_parts  # noqa: F401 (imports Avalanche without its warnings)
import pytest
from runner_parts import small
from test_going_on import content, kill_at  # noqa: F401 (a fixture)

from clmeta.errors import RunFolderError
from clmeta.ground.signing import NotOurs, key_file
from clmeta.runs.runner import run
from clmeta.strategies.registry import STRATEGIES

STEPS = 12


@pytest.fixture(autouse=True)
def own_key(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


def config(strategy, **options):
    own = {"mem_size": 8, "batch_size_mem": 2} if strategy in ("replay", "er-ace", "der") else {}
    return small(
        strategy=strategy,
        strategy_options=own,
        stream_options={"tasks": 3, "steps_per_task": STEPS, "augment": "crop-flip"},
        checkpoint_every=4,
        **options,
    )


AVALANCHE = [name for name in STRATEGIES.names() if name != "plain"]


@pytest.mark.parametrize("strategy", AVALANCHE)
def test_killed_again_and_again_it_leaves_what_it_would_have(strategy, tmp_path, kill_at):  # noqa: F811
    run(config(strategy), tmp_path / "never")
    for step in (STEPS + 7, 2 * STEPS, 3 * STEPS):
        kill_at(config(strategy), tmp_path / "killed", step)
    run(config(strategy), tmp_path / "killed")
    assert content(tmp_path / "killed") == content(tmp_path / "never")


@pytest.mark.slow
@pytest.mark.parametrize("strategy", AVALANCHE)
def test_every_step_is_a_place_to_go_on_from(strategy, tmp_path, kill_at):  # noqa: F811
    run(config(strategy), tmp_path / "never")
    for step in range(1, 3 * STEPS + 1):
        kill_at(config(strategy), tmp_path / "killed", step)
    run(config(strategy), tmp_path / "killed")
    assert content(tmp_path / "killed") == content(tmp_path / "never")


def test_nothing_that_another_wrote_is_unpickled(tmp_path, kill_at):  # noqa: F811
    kill_at(config("replay"), tmp_path / "run", 5)
    key_file().unlink()
    with pytest.raises((NotOurs, RunFolderError), match="not written by this user here"):
        run(config("replay"), tmp_path / "run")


def test_the_key_is_the_users_own(tmp_path, kill_at):  # noqa: F811
    kill_at(config("online"), tmp_path / "run", 5)
    assert stat.S_IMODE(key_file().stat().st_mode) == 0o600
    os.chmod(key_file(), 0o644)
    with pytest.raises((NotOurs, RunFolderError), match="can be read or written by others"):
        run(config("online"), tmp_path / "run")


def test_images_are_no_part_of_a_checkpoint(tmp_path, kill_at):  # noqa: F811
    kill_at(config("replay"), tmp_path / "run", 2 * STEPS)
    newest = max((tmp_path / "run" / "checkpoints").iterdir())
    assert newest.stat().st_size < 300_000
