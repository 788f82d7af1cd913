"""Checkpoint files: whole or absent, known to be damaged, kept twice, and no stranger's code."""

from __future__ import annotations

import hashlib
import io
import os
import pickle

import pytest
import torch
from torch import nn

from clmeta import BadArgument, Checkpoint, MetaOptimize, Recorder, RunFolderError
from clmeta.record.checkpoint_file import CheckpointWarning
from clmeta.record.interval import Interval


class Count:
    """A part that counts."""

    def __init__(self):
        self.value = 0

    def state(self):
        return {"value": self.value}

    def restore(self, state):
        self.value = state["value"]


def counted(folder, steps, every=2):
    """A loop over numbers that goes on by itself; what it counts up to, and what it was given."""
    count = Count()
    checkpoint = Checkpoint(folder, every=every, count=count)
    given = []
    for number in checkpoint.steps(range(steps)):
        given.append(number)
        count.value += number
    return count.value, given


def files(folder):
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def test_two_files_are_kept_and_the_newest_is_gone_on_from(tmp_path):
    assert counted(tmp_path, 7) == (21, [0, 1, 2, 3, 4, 5, 6])
    assert files(tmp_path) == ["step-000000000004.pt", "step-000000000006.pt"]
    assert counted(tmp_path, 10) == (45, [6, 7, 8, 9])


def test_a_folder_that_was_closed_is_an_error_of_one_line(tmp_path, monkeypatch):
    def closed(*_, **__):
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", closed)
        with pytest.raises(RunFolderError, match=r"checkpoints: Permission denied; .* choose"):
            counted(tmp_path, 7)
        with pytest.raises(RunFolderError, match=r"checkpoints: Permission denied; .* choose"):
            Checkpoint(tmp_path).clear()
    assert counted(tmp_path, 10)[0] == 45


@pytest.mark.parametrize("damage", ["cut", "flipped", "emptied", "of another kind"])
def test_a_damaged_newest_file_is_told_and_the_one_before_is_gone_on_from(tmp_path, damage):
    counted(tmp_path, 7)
    newest = tmp_path / "checkpoints" / "step-000000000006.pt"
    content = newest.read_bytes()
    middle = len(content) // 2
    newest.write_bytes(
        {
            "cut": content[:middle],
            "flipped": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
            "emptied": b"",
            "of another kind": b"hello\n" * 100,
        }[damage]
    )
    with pytest.warns(CheckpointWarning, match=r"step-0+6\.pt .*damaged.*going on from step-0+4"):
        assert counted(tmp_path, 8, every=None) == (28, [4, 5, 6, 7])


def test_where_all_are_damaged_it_starts_from_the_beginning_and_says_so(tmp_path):
    counted(tmp_path, 3)
    (only,) = (tmp_path / "checkpoints").iterdir()
    only.write_bytes(b"")
    with pytest.warns(CheckpointWarning, match="starting from the beginning"):
        assert counted(tmp_path, 3, every=None) == (3, [0, 1, 2])


class Evil:
    def __reduce__(self):
        return exec, ("raise SystemExit('a stranger got in')",)


def test_code_that_a_stranger_put_into_a_file_is_not_run(tmp_path):
    counted(tmp_path, 3)
    (only,) = (tmp_path / "checkpoints").iterdir()
    words = only.read_bytes().partition(b"\n")[0].split()
    bodies = []
    for save in (torch.save, pickle.dump):
        buffer = io.BytesIO()
        save({"step": 2, "parts": Evil()}, buffer)
        bodies.append(buffer.getvalue())
    for body in bodies:
        words[-1] = hashlib.sha256(body).hexdigest().encode()
        only.write_bytes(b" ".join(words) + b"\n" + body)
        with pytest.warns(CheckpointWarning, match="cannot be read"):
            assert counted(tmp_path, 2, every=None) == (1, [0, 1])


def test_a_file_of_another_form_is_no_damage_and_is_left_alone(tmp_path):
    counted(tmp_path, 3)
    (only,) = (tmp_path / "checkpoints").iterdir()
    content = only.read_bytes()
    only.write_bytes(content.replace(b"checkpoint 1 ", b"checkpoint 2 ", 1))
    with pytest.raises(RunFolderError, match=r"form 2.*go on with that version"):
        counted(tmp_path, 3)
    assert only.exists()


def test_what_is_not_plain_data_is_refused_when_it_is_written(tmp_path):
    count = Count()
    count.value = Evil()
    with pytest.raises(RunFolderError, match=r"must be made of\s+numbers"):
        Checkpoint(tmp_path, count=count).save(1)
    assert not (tmp_path / "checkpoints").exists() or not files(tmp_path)


@pytest.mark.parametrize("part", [3, "model", nn.Linear, object()])
def test_a_part_that_has_no_state_is_refused_by_name(tmp_path, part):
    with pytest.raises(BadArgument, match=r"^mine=.*state_dict"):
        Checkpoint(tmp_path, mine=part)


def test_other_parts_and_other_shapes_are_refused(tmp_path):
    Checkpoint(tmp_path, model=nn.Linear(2, 2)).save(1)
    with pytest.raises(RunFolderError, match="holds the parts model, not count, model"):
        Checkpoint(tmp_path, model=nn.Linear(2, 2), count=Count()).restore()
    with pytest.raises(RunFolderError, match=r"model is not what it was .*size mismatch"):
        Checkpoint(tmp_path, model=nn.Linear(3, 2)).restore()


def test_generators_schedulers_and_modules_are_parts(tmp_path):
    def parts():
        model = nn.Linear(2, 2)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
        generator = torch.Generator().manual_seed(1)
        return {"model": model, "optimizer": optimizer, "plan": scheduler, "dice": generator}

    one, other = parts(), parts()
    one["optimizer"].step()
    one["plan"].step()
    torch.rand(3, generator=one["dice"])
    one["model"].eval()
    Checkpoint(tmp_path, **one).save(1)
    Checkpoint(tmp_path, **other).restore()
    assert torch.equal(other["model"].weight, one["model"].weight)
    assert not other["model"].training
    assert other["optimizer"].param_groups[0]["lr"] == pytest.approx(0.01)
    assert torch.equal(*(torch.rand(3, generator=each["dice"]) for each in (one, other)))


def test_a_recorded_loop_goes_on_and_a_finished_one_keeps_no_checkpoint(tmp_path):
    def loop(stop):
        torch.manual_seed(0)
        model = nn.Linear(2, 1)
        optimizer = MetaOptimize(model.named_parameters(), alpha0=1e-2)
        checkpoint = Checkpoint(tmp_path, every=3, model=model, optimizer=optimizer)
        recorder = Recorder(tmp_path, optimizer, resume=checkpoint, part_steps=4)
        for step in checkpoint.steps(range(10)):
            loss = model(torch.ones(2)).square().sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            recorder.record(0, loss)
            if step == stop:
                recorder.folder.release()
                return step
        recorder.close()
        return checkpoint.step

    assert loop(stop=7) == 7
    assert files(tmp_path) == ["step-000000000003.pt", "step-000000000006.pt"]
    assert loop(stop=None) == 0
    assert not (tmp_path / "checkpoints").exists()
    assert len(list((tmp_path / "trajectory").iterdir())) == 3


def test_intervals_are_steps_or_times():
    by_steps = Interval.of("every", "10")
    assert next(step for step in range(1, 31) if by_steps.due(step)) == 10
    assert Interval.of("every", 3).due(3)
    assert Interval.of("every", None).due(10**9) is False
    assert Interval.of("every", "2min").seconds == 120
    for wrong in (0, -1, "0s", "soon", "", "1e3", 1.5, True, "5 days", "9" * 400):
        with pytest.raises(BadArgument, match=r"^every="):
            Interval.of("every", wrong)


def test_a_dear_checkpoint_stretches_the_time_to_the_next(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("clmeta.record.interval.time.monotonic", lambda: now[0])
    interval = Interval.of("every", "60s")
    interval.start(0)
    now[0] = 61.0
    assert interval.due(1)
    interval.saved(1, cost=2.0)
    now[0] = 61.0 + 199
    assert not interval.due(2)
    now[0] = 61.0 + 200
    assert interval.due(2)


def test_a_loader_that_draws_goes_on_with_what_it_would_have_drawn(tmp_path):
    def drawn(folder, most, every):
        dice = torch.Generator().manual_seed(3)
        loader = torch.utils.data.DataLoader(list(range(12)), shuffle=True, generator=dice)
        checkpoint = Checkpoint(folder, every=every, dice=dice)
        found = []
        for item in checkpoint.steps(loader):
            found.append(int(item))
            if len(found) == most:
                break
        return found

    never = drawn(tmp_path / "never", 12, None)
    assert drawn(tmp_path / "run", 7, 3) == never[:7]
    assert drawn(tmp_path / "run", 12, None) == never[6:]


def test_what_is_frozen_and_what_has_gathered_go_on(tmp_path):
    one, other = nn.Linear(2, 2), nn.Linear(2, 2)
    one.bias.requires_grad_(False)
    one(torch.ones(2)).sum().backward()
    Checkpoint(tmp_path, model=one).save(1)
    Checkpoint(tmp_path, model=other).restore()
    assert not other.bias.requires_grad and other.bias.grad is None
    assert torch.equal(other.weight.grad, one.weight.grad)
