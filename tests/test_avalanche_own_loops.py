"""A loop of one's own under Avalanche goes on in the middle of an experience."""

from __future__ import annotations

import json

import pytest
import torch
from avalanche_parts import (
    IGNORED,
    GrowingNet,
    Spy,
    growing,
    meta_optimize,
    silent,
    supervised,
)
from torch import nn

from clmeta import Checkpoint
from clmeta.record.recorder import Recorder
from clmeta.strategies import MetaOptimizePlugin, StepSizeRecorder, going_on, resumable

pytestmark = [pytest.mark.filterwarnings(text) for text in IGNORED]
STEPS = 8


class Killed(BaseException):
    pass


class Net(GrowingNet):
    """Grows, and draws as it learns."""

    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout(0.2)

    def forward(self, x):
        return super().forward(self.drop(x))


def loop(folder, stop=None):
    """A user's script; killed after so many steps."""
    from avalanche.training.plugins import ReplayPlugin

    torch.manual_seed(1)

    def look(strategy):
        if stop is not None and strategy.clock.train_iterations + 1 == stop:
            raise Killed

    model = Net()
    recorder = StepSizeRecorder(folder, config={"seed": 1})
    strategy = resumable(supervised.Naive)(
        model=model,
        optimizer=meta_optimize(model),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=2,
        train_epochs=1,
        evaluator=silent(),
        plugins=[
            MetaOptimizePlugin(),
            ReplayPlugin(mem_size=8, batch_size_mem=2, batch_size=2),
            recorder,
            Spy("after_training_iteration", look),
        ],
    )
    benchmark = growing(steps=STEPS, batch_size=2).benchmark()
    # A function of the test is no part of what is saved.
    known = {"spy": next(plugin for plugin in strategy.plugins if isinstance(plugin, Spy))}
    checkpoint = Checkpoint(folder, every=1)
    for experience in going_on(strategy, benchmark.train_stream, checkpoint, known=known):
        strategy.train(experience, shuffle=False)
    recorder.close()
    return model.state_dict()


def content(folder):
    files = [folder / "tasks.parquet", *(folder / "trajectory").iterdir()]
    summary = json.loads((folder / "summary.json").read_text())
    del summary["seconds"], summary["finished"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files} | summary


def test_heads_that_grew_memories_and_records_go_on(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    wanted = loop(tmp_path / "never")
    with monkeypatch.context() as patch:
        patch.setattr(Recorder, "__exit__", lambda recorder, *_: recorder.folder.release())
        for stop in (3, STEPS, STEPS + 1, 2 * STEPS + 3):
            with pytest.raises(Killed):
                loop(tmp_path / "killed", stop)
    found = loop(tmp_path / "killed")
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert content(tmp_path / "killed") == content(tmp_path / "never")
    assert not (tmp_path / "killed" / "checkpoints").exists()
