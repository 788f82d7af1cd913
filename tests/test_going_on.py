"""A run that was killed goes on bit for bit when it is started again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from runner_parts import small

from clmeta.errors import RunFolderError
from clmeta.record.lock import lock
from clmeta.record.recorder import Recorder
from clmeta.runs.config import RunConfig
from clmeta.runs.runner import run
from clmeta.strategies import plain


class Killed(BaseException):
    """The process is gone: nothing is written any more."""


@pytest.fixture
def kill_at(monkeypatch):
    """Runs a config into a folder until a step, as a kill would end it there."""
    add, leave = plain.Tally.add, Recorder.__exit__

    def start(config, folder, step):
        def counted(tally, *args):
            add(tally, *args)
            if tally.steps == step:
                raise Killed

        with monkeypatch.context() as patch:
            patch.setattr(plain.Tally, "add", counted)
            patch.setattr(Recorder, "__exit__", lambda recorder, *_: recorder.folder.release())
            with pytest.raises(Killed):
                run(config, folder)
        assert Recorder.__exit__ is leave

    return start


def content(folder):
    """All that a run leaves, but when it was and how long it took."""
    files = [folder / "tasks.parquet", *(folder / "trajectory").iterdir()]
    found = {str(path.relative_to(folder)): path.read_bytes() for path in files}
    summary = json.loads((folder / "summary.json").read_text())
    return found | {name: summary[name] for name in summary if name not in ("seconds", "finished")}


CONFIGS = {
    "plain": small(checkpoint_every=7),
    "every step": small(checkpoint_every=1),
    "node": small(checkpoint_every=7, blocks="node", base="lion", meta="rmsprop"),
    "wrapped": small(checkpoint_every=7, base="torch.optim:RAdam", base_options={}),
    "curved": small(checkpoint_every=7, hessian="diagonal"),
    "augmented": small(
        checkpoint_every=7,
        stream_options={"tasks": 2, "steps_per_task": 30, "augment": "crop-flip", "batch_size": 3},
    ),
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_killed_again_and_again_it_leaves_what_it_would_have(config, tmp_path, kill_at):
    run(config, tmp_path / "never")
    before = torch.get_rng_state()
    for step in (3, 16, 30, 31, 59, 60):
        kill_at(config, tmp_path / "killed", step)
    run(config, tmp_path / "killed")
    assert content(tmp_path / "killed") == content(tmp_path / "never")
    assert not (tmp_path / "killed" / "checkpoints").exists()
    assert not list((tmp_path / "killed").glob("*interrupted*"))
    assert torch.equal(torch.get_rng_state(), before)


def test_other_options_are_refused_by_name_and_overwrite_starts_anew(tmp_path, kill_at):
    config = CONFIGS["plain"]
    kill_at(config, tmp_path / "run", 20)
    other = small(checkpoint_every=7, eta=0.5, seed=3)
    with pytest.raises(RunFolderError, match=r"eta was .*1e-3, is now 0\.5, seed was 0, is now 3"):
        run(other, tmp_path / "run")
    run(other, tmp_path / "run", overwrite=True)
    run(other, tmp_path / "never")
    assert content(tmp_path / "run") == content(tmp_path / "never")


def test_how_often_and_what_it_is_called_may_change(tmp_path, kill_at):
    kill_at(CONFIGS["plain"], tmp_path / "run", 20)
    run(small(checkpoint_every="1h", name="mine"), tmp_path / "run")
    run(CONFIGS["plain"], tmp_path / "never")
    assert content(tmp_path / "run") == content(tmp_path / "never")


def test_other_data_are_refused(tmp_path, kill_at):
    from clmeta.streams import ArrayData, load_dataset

    kill_at(CONFIGS["plain"], tmp_path / "run", 20)
    its = load_dataset("digits")
    other = ArrayData(its.x_train.flip(0), its.y_train, its.x_test, its.y_test, name=its.name)
    with pytest.raises(RunFolderError, match="other data"):
        run(CONFIGS["plain"], tmp_path / "run", data=other)


def test_a_missing_part_is_named(tmp_path, kill_at):
    kill_at(CONFIGS["plain"], tmp_path / "run", 40)
    (tmp_path / "run" / "trajectory" / "part-00000.parquet").unlink()
    with pytest.raises(RunFolderError, match=r"lacks part-00000\.parquet"):
        run(CONFIGS["plain"], tmp_path / "run")


def test_without_checkpoints_an_unfinished_run_is_moved_aside(tmp_path, kill_at):
    config = small(checkpoint_every=None)
    kill_at(config, tmp_path / "run", 40)
    run(config, tmp_path / "run")
    assert (tmp_path / "run" / "trajectory.interrupted-0").is_dir()
    assert RunConfig.from_file(tmp_path / "run").checkpoint_every is None


def test_overwrite_on_the_command_line_starts_an_unfinished_run_anew(tmp_path, kill_at, cli):
    config = CONFIGS["plain"]
    kill_at(config, tmp_path / "run" / "seed-0", 40)
    words = ["-s", "tasks=2", "-s", "steps_per_task=30", "-m", "hidden=8", "--blocks", "layer"]
    words += ["--alpha0", "2e-3", "-o", str(tmp_path / "run")]
    code, _, said = cli("run", *words)
    assert code == 1 and "alpha0 was" in said
    assert cli("run", *words, "--overwrite")[0] == 0
    run(small(alpha0=2e-3), tmp_path / "never")
    assert content(tmp_path / "run" / "seed-0") == content(tmp_path / "never")


def test_a_start_that_is_refused_leaves_the_others_checkpoints(tmp_path, kill_at):
    config = CONFIGS["plain"]
    kill_at(config, tmp_path / "run", 40)
    let_go = lock(tmp_path / "run" / ".lock", config)
    with pytest.raises(RunFolderError, match="being written"):
        run(config, tmp_path / "run", overwrite=True)
    let_go()
    assert list((tmp_path / "run" / "checkpoints").iterdir())


def test_a_kill_while_things_are_moved_aside_is_no_end(tmp_path, kill_at, monkeypatch):
    config = CONFIGS["plain"]
    for number in range(5):
        folder = tmp_path / str(number)
        kill_at(config, folder, 40)
        left, rename = [number], Path.rename

        def killed(path, target, left=left, rename=rename):
            left[0] -= 1
            if left[0] < 0:
                raise Killed
            return rename(path, target)

        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(Path, "rename", killed)
            run(config, folder, overwrite=True)
        run(config, folder)
        run(config, tmp_path / f"never-{number}")
        assert content(folder) == content(tmp_path / f"never-{number}")


def test_resume_takes_the_options_from_the_folder(tmp_path, kill_at, cli):
    config = CONFIGS["plain"]
    kill_at(config, tmp_path / "run", 40)
    code, _, said = cli("run", "--resume", str(tmp_path / "run"))
    assert code == 0 and "goes on from step 35" in said
    run(config, tmp_path / "never")
    assert content(tmp_path / "run") == content(tmp_path / "never")
    code, _, said = cli("run", "--resume", str(tmp_path / "run"))
    assert code == 2 and "holds no checkpoint" in said
    code, _, said = cli("run", "--resume", str(tmp_path / "run"), "--seeds", "0-2")
    assert code == 2 and said.startswith("error: --seeds")
