"""Learners that train together and are killed go on together, bit for bit."""

from __future__ import annotations

import json
import shutil

import pytest
from runner_parts import small
from test_going_on import Killed, content

from clmeta.errors import RunFolderError
from clmeta.record.part import Part
from clmeta.record.recorder import Recorder
from clmeta.record.runfolder import RunFolder
from clmeta.replicas import chunk as chunks
from clmeta.replicas import run_replicas
from clmeta.replicas.run import ReplicasFailed, ReplicaWarning
from clmeta.runs.config import RunConfig
from clmeta.runs.runner import run
from clmeta.sweep.run import LocalLauncher, run_sweep


def configs(lengths=(30, 30, 12, 30), **options):
    """Four learners, of which one ends sooner."""
    return [
        small(
            seed=seed,
            alpha0=1e-3 * (seed + 1),
            blocks=("layer", "scalar")[seed % 2],
            stream_options={"tasks": 2, "steps_per_task": length},
            checkpoint_every=10,
            **options,
        )
        for seed, length in enumerate(lengths)
    ]


@pytest.fixture
def short_segments(monkeypatch):
    """Blocks of images are cut shorter, so that there is more than one place to stop at."""
    monkeypatch.setattr("clmeta.streams.order.BLOCK", 5)


@pytest.fixture
def kill_at(monkeypatch, short_segments):
    """Does something until so many segments were done, as a kill would end it there."""

    def start(segments, do):
        after = chunks.Chunk._go
        left = [segments]

        def counted(chunk, step, ends):
            tell = chunk.tell

            def told(steps):
                tell(steps)
                left[0] -= 1
                if left[0] == 0:
                    raise Killed

            chunk.tell = told
            after(chunk, step, ends)

        with monkeypatch.context() as patch:
            patch.setattr(chunks.Chunk, "_go", counted)
            patch.setattr(Recorder, "__exit__", lambda recorder, *_: recorder.folder.release())
            with pytest.raises(Killed):
                do()

    return start


def folders(path, count=4):
    return [path / f"run-{number}" for number in range(count)]


def test_killed_again_and_again_they_leave_what_they_would_have(tmp_path, kill_at):
    asked, never, killed = configs(), folders(tmp_path / "never"), folders(tmp_path / "killed")
    run_replicas(asked, never, chunk=4)
    for segments in (1, 3, 4, 5, 2):
        kill_at(segments, lambda: run_replicas(asked, killed, chunk=4, along=True))
    assert any((tmp_path / "killed" / ".chunks").rglob("*.pt"))
    run_replicas(asked, killed, chunk=1, along=True)
    assert [*map(content, killed)] == [*map(content, never)]
    assert not (tmp_path / "killed" / ".chunks").exists()


def test_what_finished_before_the_kill_is_kept_as_it_is(tmp_path, kill_at):
    asked, never, killed = configs(), folders(tmp_path / "never"), folders(tmp_path / "killed")
    run_replicas(asked, never, chunk=4)
    kill_at(11, lambda: run_replicas(asked, killed, chunk=4))
    done = killed[2] / "summary.json"
    before = done.read_text()
    run_replicas(asked, killed, chunk=4, along=True)
    assert done.read_text() == before
    assert [*map(content, killed)] == [*map(content, never)]


def test_overwriting_starts_anew(tmp_path, kill_at):
    asked, never, killed = configs(), folders(tmp_path / "never"), folders(tmp_path / "killed")
    run_replicas(asked, never, chunk=4)
    kill_at(5, lambda: run_replicas(asked, killed, chunk=4))
    run_replicas(asked, killed, chunk=4, overwrite=True)
    assert [*map(content, killed)] == [*map(content, never)]
    assert not (tmp_path / "killed" / ".chunks").exists()


def test_a_sweep_goes_on_with_its_chunk_whatever_size_is_asked_for(tmp_path, kill_at):
    asked, one = configs((30, 30, 30, 30)), LocalLauncher(1)
    run_sweep(asked, tmp_path / "never", launcher=one, chunk=4)
    kill_at(5, lambda: run_sweep(asked, tmp_path / "killed", launcher=one, chunk=4))
    result = run_sweep(asked, tmp_path / "killed", launcher=one, chunk=2)
    assert not result.failed
    for each in result.runs:
        assert content(each.folder) == content(tmp_path / "never" / each.name)
    noted = json.loads((tmp_path / "killed" / ".sweep" / "chunks.json").read_text())
    assert [len(names) for names in noted["chunks"]] == [4]


def test_a_run_knows_with_whom_it_trained_and_repeats_it_to_the_bit(tmp_path, cli):
    asked, there = configs(), folders(tmp_path / "runs")
    run_replicas(asked, there, chunk=4)
    code, _, said = cli("run", "-c", str(there[1]), "-o", str(tmp_path / "again"))
    assert code == 0 and "the 3 runs that it trained with train along" in said
    assert content(tmp_path / "again" / "seed-1") == content(there[1])
    code, _, said = cli("run", "-c", str(there[1]), "-o", str(tmp_path / "alone"), "--reproducible")
    assert code == 0 and "train along" not in said
    run(asked[1], tmp_path / "single")
    assert content(tmp_path / "alone" / "seed-1") == content(tmp_path / "single")


def test_a_reproducible_sweep_depends_on_its_options_alone(tmp_path, cli):
    words = [
        "-s",
        "tasks=2",
        "-s",
        "steps_per_task=20",
        "--reproducible",
        "--grid",
        "eta=1e-3,1e-2",
    ]
    assert cli("sweep", *words, "-j", "1", "-o", str(tmp_path / "sweep"))[0] == 0
    for folder in (tmp_path / "sweep").glob("adamw*"):
        run(RunConfig.from_file(folder), tmp_path / "alone" / folder.name)
        assert content(folder) == content(tmp_path / "alone" / folder.name)
    code, _, said = cli("sweep", *words, "--chunk", "2", "-o", str(tmp_path / "other"))
    assert code == 2 and "--chunk=2" in said


def test_a_run_whose_disk_was_full_goes_on_from_the_last_checkpoint_too(
    tmp_path, monkeypatch, short_segments
):
    asked, never, full = configs(), folders(tmp_path / "never"), folders(tmp_path / "full")
    run_replicas(asked, never, chunk=4)
    write = RunFolder.write_json

    def fails(folder, file, text):
        if file == RunFolder(full[0]).summary_file:
            raise RunFolderError("cannot write: No space left on device")
        write(folder, file, text)

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "write_json", fails)
        with pytest.raises(ReplicasFailed):
            run_replicas(asked, full, chunk=4)
    assert any((tmp_path / "full" / ".chunks").rglob("*.pt"))
    began = []
    monkeypatch.setattr(
        Part, "restored", lambda *a, known=Part.restored: began.append(1) or known(*a)
    )
    run_replicas(asked, full, chunk=4, along=True)
    assert began
    assert [*map(content, full)] == [*map(content, never)]
    assert not (tmp_path / "full" / ".chunks").exists()


@pytest.mark.parametrize("chunk, last", [(1, "Checkpoint.clear"), (2, "Home.remove")])
def test_a_kill_at_the_very_end_leaves_nothing_past_the_next_start(
    chunk, last, tmp_path, monkeypatch, short_segments
):
    asked, one = configs((30, 30)), LocalLauncher(1)

    def killed(what):
        folder = what.folder if chunk == 1 else what.path
        if any(folder.rglob("*.pt")):
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        home = "clmeta.record.checkpoint" if chunk == 1 else "clmeta.replicas.going_on"
        patch.setattr(f"{home}.{last}", killed)
        patch.setattr("clmeta.sweep.run.remove_leftovers", lambda *_: None)
        run_sweep(asked, tmp_path, launcher=one, chunk=chunk)
    assert any(tmp_path.rglob("*.pt"))
    result = run_sweep(asked, tmp_path, launcher=one, chunk=chunk)
    assert not result.failed
    assert not any(tmp_path.rglob("*.pt")) and not any(tmp_path.rglob("checkpoints"))
    assert not (tmp_path / ".chunks").exists()


def test_some_of_them_alone_lose_the_others_nothing(tmp_path, kill_at):
    asked, never, killed = configs(), folders(tmp_path / "never"), folders(tmp_path / "killed")
    run_replicas(asked, never, chunk=4)
    kill_at(5, lambda: run_replicas(asked, killed, chunk=4))
    kill_at(3, lambda: run_replicas(asked[:1], killed[:1], chunk=4))
    run_replicas(asked[:1], killed[:1], chunk=4)
    run_replicas(asked, killed, chunk=4, along=True)
    assert [*map(content, killed)] == [*map(content, never)]
    assert not (tmp_path / "killed" / ".chunks").exists()


def test_one_whose_folder_is_gone_holds_up_no_other_and_is_done_anew(tmp_path, kill_at):
    asked, never, killed = configs(), folders(tmp_path / "never"), folders(tmp_path / "killed")
    run_replicas(asked, never, chunk=4)
    kill_at(5, lambda: run_replicas(asked, killed, chunk=4))
    shutil.rmtree(killed[1])
    with pytest.warns(ReplicaWarning, match="trains along and is done anew"):
        run_replicas(asked, killed, chunk=4)
    assert [content(killed[n]) for n in (0, 2, 3)] == [content(never[n]) for n in (0, 2, 3)]
    assert (killed[1] / "summary.json").exists()


def test_a_repetition_that_was_killed_goes_on_and_overwritten_begins_anew(tmp_path, kill_at, cli):
    asked, there = configs(), folders(tmp_path / "runs")
    run_replicas(asked, there, chunk=4)
    again = ["run", "-c", str(there[1]), "-o", str(tmp_path / "again"), "--checkpoint-every", "5"]
    kill_at(7, lambda: cli(*again))
    assert any((tmp_path / "again" / ".chunks").rglob("*.pt"))
    done = []
    restored = Part.restored
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Part, "restored", lambda *a: done.append(1) or restored(*a))
        assert cli(*again)[0] == 0
    assert done, "it went on"
    assert content(tmp_path / "again" / "seed-1") == content(there[1])
    assert not (tmp_path / "again" / ".chunks").exists()
    kill_at(7, lambda: cli(*again, "--overwrite"))
    assert cli(*again, "--overwrite")[0] == 0
    assert content(tmp_path / "again" / "seed-1") == content(there[1])


def test_a_disk_that_is_full_as_they_go_on_makes_none_begin_anew(tmp_path, kill_at, monkeypatch):
    asked, never, killed = configs(), folders(tmp_path / "never"), folders(tmp_path / "killed")
    run_replicas(asked, never, chunk=4)
    kill_at(7, lambda: run_replicas(asked, killed, chunk=4))

    def full(*_):
        raise RunFolderError("cannot write: No space left on device") from OSError(28, "full")

    with monkeypatch.context() as patch, pytest.raises(RunFolderError, match="No space left"):
        patch.setattr(Recorder, "_write_tasks", full)
        run_replicas(asked, killed, chunk=4)
    run_replicas(asked, killed, chunk=4, along=True)
    assert [*map(content, killed)] == [*map(content, never)]
    assert not any((tmp_path / "killed").rglob("*interrupted*"))
