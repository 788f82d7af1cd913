"""Networks by name."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clmeta.errors import BadArgument
from clmeta.models import MODELS, make_model

COLOUR = (3, 32, 32)


def names(model):
    return list(dict.fromkeys(name.rpartition(".")[0] for name, _ in model.named_parameters()))


def test_the_cnn_is_the_papers():
    model = make_model("cnn", COLOUR, 10)
    assert names(model) == ["features.0", "features.3", "classifier.1", "classifier.3"]
    assert [tuple(p.shape) for n, p in model.named_parameters() if n.endswith("weight")] == [
        (16, 3, 3, 3),
        (32, 16, 3, 3),
        (128, 2048),
        (10, 128),
    ]
    assert sum(p.numel() for p in model.parameters()) == 268_650


def test_the_cnn_takes_the_authors_weights_and_starts_at_their_loss(shared):
    with np.load(shared / "data" / "parity_400_steps.npz") as parity:
        weights = {k[3:]: torch.tensor(parity[k]) for k in parity.files if k.startswith("w0/")}
        x = torch.tensor(parity["x"][:1]) / 255
        y = torch.tensor(parity["y"][:1]).long()
        loss = float(parity["adamw_adam_scalar/loss"][0])
    model = make_model("cnn", COLOUR, 10)
    model.load_state_dict(weights)
    found = torch.nn.functional.cross_entropy(model(x), y)
    assert float(found.detach()) == pytest.approx(loss, rel=1e-5)


def test_an_mlp_has_the_layers_asked_for():
    model = make_model("mlp", (1, 8, 8), 7, {"hidden": [20, 30]})
    assert names(model) == ["hidden.0", "hidden.1", "output"]
    assert [p.shape[0] for _, p in model.named_parameters()] == [20, 20, 30, 30, 7, 7]


@given(
    name=st.sampled_from(MODELS.names()),
    channels=st.integers(1, 3),
    side=st.integers(4, 12),
    classes=st.integers(1, 12),
    batch=st.integers(1, 3),
)
def test_every_network_maps_images_of_any_size_to_logits(name, channels, side, classes, batch):
    model = make_model(name, (channels, side, side), classes)
    assert model(torch.zeros(batch, channels, side, side)).shape == (batch, classes)


@pytest.mark.parametrize("name", MODELS.names())
def test_weights_come_from_their_seed_alone(name):
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    first = make_model(name, COLOUR, 10, seed=5).state_dict()
    assert torch.equal(torch.rand(3), expected), "the global generator moved"
    second = make_model(name, COLOUR, 10, seed=5).state_dict()
    other = make_model(name, COLOUR, 10, seed=6).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not any(torch.equal(first[key], other[key]) for key in first)


def test_a_factory_of_ones_own_is_found_by_path(tmp_path, monkeypatch):
    text = """
        import torch

        def wide(input_shape, n_classes, factor=2):
            layer = torch.nn.LazyLinear(factor * n_classes)
            layer(torch.zeros(input_shape).flatten())
            return layer

        def wrong(input_shape, n_classes):
            return "not a network"
    """
    lines = [line[8:] for line in text.splitlines()]
    (tmp_path / "my_networks.py").write_text("\n".join(lines))
    monkeypatch.chdir(tmp_path)
    model = make_model("my_networks:wide", (1, 2, 2), 3, {"factor": 4})
    assert model.weight.shape == (12, 4)
    with pytest.raises(BadArgument, match=r"must return a torch\.nn\.Module"):
        make_model("my_networks:wrong", COLOUR, 10)


@pytest.mark.parametrize(
    ("name", "shape", "options", "message"),
    [
        ("cmn", COLOUR, {}, "model='cmn': unknown model; did you mean 'cnn'.*package.module"),
        ("mlp", COLOUR, {"hiden": 3}, "model option hiden=3: unknown; known: hidden"),
        ("mlp", COLOUR, {"hidden": [64, 0]}, "hidden=0: must be a whole number of at least 1"),
        ("mlp", COLOUR, {"hidden": "64"}, "hidden='64': must be a whole number of at least 1"),
        ("cnn", COLOUR, {"channels": [16]}, r"channels=\[16\]: must be two numbers"),
        ("cnn", (8, 8), {}, r"input_shape=\(8, 8\): the CNN needs images, \(channels, height, w"),
        ("cnn", (3, 8, 0), {}, "input_shape=0: must be a whole number of at least 1"),
        ("mlp", None, {}, "input_shape=None: must be a whole number"),
        ("mlp", "digits", {}, "input_shape='digits': must be a whole number"),
        ("mlp", COLOUR, ["hidden"], r"options=\['hidden'\]: must map keywords to values"),
        ("mlp", COLOUR, {"hidden": 10**14}, "model='mlp': fails with RuntimeError: .*alloc"),
        ("torch.nn:Linear", COLOUR, {}, "model='torch.nn:Linear': fails with TypeError"),
        ("cnn", (3, 2, 2), {}, r"input_shape=\(3, 2, 2\): the CNN needs at least 4 x 4"),
    ],
)
def test_what_cannot_work_is_named_with_its_mend(name, shape, options, message):
    with pytest.raises(BadArgument, match=message):
        make_model(name, shape, 10, options)


def test_a_factory_with_another_signature_is_refused_with_the_one_it_needs(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "def none():\n    pass\n\n\ndef more(shape, classes, depth):\n    pass\n"
    )
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadArgument, match=r"the function none\(\); .* factory\(input_shape"):
        make_model("mine:none", (1, 8, 8), 10)
    with pytest.raises(BadArgument, match=r"model='mine:more': is called as factory\(input_shape"):
        make_model("mine:more", (1, 8, 8), 10)
