"""The network that a run ended with comes back from its folder."""

from __future__ import annotations

import json

import pytest
import torch
from replica_parts import config
from runner_parts import small
from torch import nn

from clmeta import RunFolderError, load_model
from clmeta.errors import BadArgument
from clmeta.models import make_model
from clmeta.record.runfolder import RunFolder
from clmeta.replicas import run_replicas
from clmeta.runs.runner import prepare, run
from clmeta.runs.weights import save_model
from clmeta.strategies.plain import accuracy

KEPT = small(save_model=True)


class Noisy(nn.Module):
    """Has what weights alone are not: a buffer, a mode, a weight that is not learnt."""

    def __init__(self, input_shape, n_classes, wide=6):
        super().__init__()
        self.drop = nn.Dropout(0.5)
        self.norm = nn.BatchNorm1d(wide)
        self.first = nn.Linear(64, wide)
        self.last = nn.Linear(wide, n_classes)
        self.first.bias.requires_grad_(False)

    def forward(self, x):
        return self.last(self.drop(self.norm(self.first(x.flatten(1)))))


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A folder of a run that kept its network; read only."""
    folder = tmp_path_factory.mktemp("kept") / "run"
    run(KEPT, folder)
    return folder


def test_it_predicts_as_the_run_measured_at_its_end(kept):
    score = run(KEPT, kept.parent / "again").online.test_accuracy[-1]
    before = torch.get_rng_state()
    model = load_model(str(kept))
    assert torch.equal(torch.get_rng_state(), before)
    assert not model.training
    assert all(p.device.type == "cpu" for p in model.parameters())
    assert accuracy(model, *prepare(KEPT).stream.test_set(1)) == score
    first = prepare(KEPT).model
    assert not torch.equal(model.output.weight, first.output.weight)


@pytest.mark.filterwarnings("ignore:No loggers")
@pytest.mark.parametrize("strategy", ["plain", "replay"])
def test_buffers_and_weights_that_stay_come_back_too(tmp_path, monkeypatch, strategy):
    if strategy != "plain":
        pytest.importorskip("avalanche")
    trained = []
    config = small(
        model=f"{__name__}:Noisy",
        model_options={"wide": 5},
        strategy=strategy,
        stream_options={"tasks": 1, "steps_per_task": 6, "batch_size": 4},
        save_model=True,
    )
    monkeypatch.setattr(
        "clmeta.runs.runner.save_model",
        lambda folder, model: (trained.append(model), save_model(folder, model)),
    )
    run(config, tmp_path)
    expected, loaded = trained[0].state_dict(), load_model(tmp_path, trust=True).state_dict()
    assert list(expected) == list(loaded)
    assert all(torch.equal(expected[name], loaded[name]) for name in expected)
    assert loaded["norm.num_batches_tracked"] == 6


def test_learners_that_train_together_keep_each_its_own(tmp_path):
    configs = [
        config(seed=seed, save_model=seed < 2, evaluate=seed == 1, strategy="plain")
        for seed in range(3)
    ]
    run_replicas(configs, [tmp_path / str(seed) for seed in range(3)])
    for seed in (0, 1):
        run(configs[seed], tmp_path / f"alone-{seed}")
        together = load_model(tmp_path / str(seed)).state_dict()
        alone = load_model(tmp_path / f"alone-{seed}").state_dict()
        for name, weight in alone.items():
            torch.testing.assert_close(together[name], weight, rtol=1e-3, atol=1e-5)
    assert not (tmp_path / "2" / "model.pt").exists()


def test_without_save_model_nothing_is_kept_and_the_mend_is_said(tmp_path):
    run(KEPT, tmp_path)
    assert (tmp_path / "model.pt").exists()
    run(small(), tmp_path, overwrite=True)
    with pytest.raises(RunFolderError, match=r"model\.pt is missing: run it with --save-model"):
        load_model(tmp_path)
    assert small().key() == KEPT.key()


def copied(kept, folder, **changes):
    """The run's config, changed, and its weights."""
    content = json.loads((kept / "config.json").read_text())
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({**content, **changes}))
    (folder / "model.pt").write_bytes((kept / "model.pt").read_bytes())
    return folder


def test_a_folder_that_is_no_run_of_ours_is_told_so(tmp_path, kept):
    with pytest.raises(RunFolderError, match=r"config\.json is missing: is this a run folder"):
        load_model(tmp_path / "none")
    for number, changes in enumerate(
        [{"resolved": 0}, {"resolved": {}}, {"resolved": {"stream": []}}, {"lr": 0.1}]
    ):
        folder = copied(kept, tmp_path / str(number), **changes)
        with pytest.raises(RunFolderError, match=r"config\.json: .*: give the folder of a run"):
            load_model(folder)


def test_weights_of_another_network_are_refused(tmp_path, kept):
    folder = copied(kept, tmp_path / "wider", model_options={"hidden": 9})
    with pytest.raises(RunFolderError, match=r"model\.pt does not fit: .*hidden\.0\.weight"):
        load_model(folder)
    with pytest.raises(BadArgument, match="model='gone': unknown model"):
        load_model(copied(kept, tmp_path / "gone", model="gone"))


def test_damaged_weights_are_an_error_of_one_line(tmp_path, kept):
    folder = copied(kept, tmp_path / "damaged")
    whole = (folder / "model.pt").read_bytes()
    for content in (b"", b"text", whole[:100], whole[:-200], b"\x80\x02." + whole):
        (folder / "model.pt").write_bytes(content)
        with pytest.raises(RunFolderError, match=r"model\.pt cannot be read \(.*repeat the run"):
            load_model(folder)
    for content, message in (
        ([1], "cannot be read"),
        ({"weights": {}}, "cannot be read"),
        ({"version": 2, "weights": {}}, "has version 2: this clmeta reads version 1"),
        ({"version": 1, "weights": {}}, "does not fit"),
        ({"version": 1, "weights": 3}, "does not fit"),
        ({"version": 1, "weights": Noisy}, "cannot be read"),
    ):
        torch.save(content, folder / "model.pt")
        with pytest.raises(RunFolderError, match=message):
            load_model(folder)


def test_views_of_larger_memory_are_kept_as_what_they_show(tmp_path):
    model = make_model("linear", (1, 2, 2), 3, seed=0)
    store = torch.zeros(100_000)
    model.output.weight.data = store[:12].view(3, 4)
    save_model(tmp_path, model)
    assert RunFolder(tmp_path).model_file.stat().st_size < 10_000
