"""A run folder is found by its name, locked by its recorder alone, and replaced wholly or not."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from clmeta.analysis import find_runs, load_runs, save_plots
from clmeta.errors import BadArgument, RunFolderError
from clmeta.record.recorder import Recorder


def write(folder: Path, steps: int = 40, **config) -> Path:
    with Recorder(folder, ["a", "b"], config={"seed": 0, **config}, part_steps=10) as recorder:
        for step in range(steps):
            recorder.record(step // 20, 0.5, float(step >= 20), [0.1, 0.2])
    return folder


def test_a_folder_is_a_folder_before_it_is_a_pattern(tmp_path, monkeypatch):
    odd = tmp_path / "runs [1]*"
    for name in ("a", "b?"):
        write(odd / name)
    write(tmp_path / "runs 1x" / "c")
    assert len(find_runs(odd)) == 2
    assert find_runs(odd / "b?") == [odd / "b?"]
    assert len(find_runs(odd / "*")) == 2, "and the rest of a pattern is one"
    assert len(find_runs(tmp_path / "runs *")) == 3
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_runs("~/runs 1x") == [tmp_path / "runs 1x" / "c"]


def test_tilde_is_home_wherever_a_path_is_given(tmp_path, monkeypatch):
    home, here = tmp_path / "home", tmp_path / "here"
    home.mkdir(), here.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(here)
    write(Path("~/runs/one"))
    runs = load_runs("~/runs/*")
    save_plots(runs, "~/figures", ["png"], ["cumulative_accuracy"])
    assert {path.name for path in home.iterdir()} == {"runs", "figures"}
    assert not list(here.iterdir())
    with pytest.raises(BadArgument, match="no such user"):
        Recorder("~nobody-of-this-name/x", ["a"])


def test_a_forked_child_holds_no_lock(tmp_path):
    recorder = Recorder(tmp_path, ["a"])
    go, stop = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(stop)
        os.read(go, 1)  # lives on until the parent is done
        os._exit(0)
    try:
        with pytest.raises(RunFolderError, match="another recorder of this one"):
            Recorder(tmp_path, ["a"])
        recorder.close()
        Recorder(tmp_path, ["a"], overwrite=True).close()
    finally:
        os.close(stop)
        os.waitpid(child, 0)


def test_overwriting_replaces_wholly_or_refuses_before_anything_is_touched(tmp_path, monkeypatch):
    write(tmp_path / "elsewhere")
    run = write(tmp_path / "run")
    shutil.rmtree(run / "trajectory")
    (run / "trajectory").symlink_to(tmp_path / "elsewhere" / "trajectory")
    with pytest.raises(RunFolderError, match="trajectory is a link, which is not overwritten"):
        Recorder(run, ["a"], overwrite=True)
    assert len(load_runs(run)) == len(load_runs(tmp_path / "elsewhere")) == 40

    def undeletable(*_, **__):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "unlink", undeletable)
    with pytest.raises(RunFolderError, match=r"cannot remove what is in .*elsewhere"):
        Recorder(tmp_path / "elsewhere", ["a"], overwrite=True)
    monkeypatch.undo()
    with Recorder(tmp_path / "elsewhere", ["a"], overwrite=True) as recorder:
        recorder.record(0, 0.5, 1.0, 0.1)
    assert len(load_runs(tmp_path / "elsewhere")) == 1


def test_what_no_run_left_is_not_written_among(tmp_path):
    (tmp_path / "trajectory").mkdir()
    (tmp_path / "trajectory" / "notes.parquet").write_bytes(b"")
    with pytest.raises(RunFolderError, match=r"holds notes.parquet, which is of no run"):
        Recorder(tmp_path, ["a"])


def test_what_a_kill_left_half_written_is_removed_by_the_next_start(tmp_path):
    for attempt in range(2):
        recorder = Recorder(tmp_path, ["a"], part_steps=1)
        recorder.record(0, attempt, 1.0, 0.1)
        (tmp_path / ".config.json.tmp").write_text("{")
        (tmp_path / "trajectory" / ".part-00001.parquet.tmp").write_bytes(b"PAR1")
        recorder.folder.release()
    Recorder(tmp_path, ["a"]).close()
    assert (tmp_path / "trajectory.interrupted-1").is_dir()
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_figure_is_whole_or_the_one_before(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    from clmeta.analysis.save import save_figure

    figure = Figure()
    path = save_figure(figure, tmp_path / "a.svg")
    before = path.read_bytes()

    def cut(file, **_):
        file.write(b"<svg")
        raise KeyboardInterrupt

    monkeypatch.setattr(figure, "savefig", cut)
    with pytest.raises(KeyboardInterrupt):
        save_figure(figure, path)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["a.svg"]
