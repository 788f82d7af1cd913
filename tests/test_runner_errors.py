"""What a run refuses before anything is written."""

from __future__ import annotations

import pytest
from runner_parts import small

from clmeta.errors import BadArgument
from clmeta.runs.runner import prepare, run


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stream": "permuted_pixels"}, "stream='permuted_pixels': unknown stream"),
        ({"stream_options": {"taks": 3}}, "taks=3: unknown option of stream"),
        ({"stream": "abrupt_classes", "stream_options": {"tasks": 20}}, "tasks=20"),
        ({"dataset": "digitz"}, "dataset='digitz': unknown dataset; did you mean 'digits'"),
        ({"dataset": "no/such.npz"}, "dataset='no/such.npz'"),
        ({"dataset_options": {"size": 3}}, "dataset option size=3: unknown"),
        ({"dataset": ".", "dataset_options": {"image_size": [1, 2]}}, r"image_size=\[1, 2\]"),
        ({"model_options": {"hidden": 1.5}}, "hidden=1.5: must be a whole number of at least 1"),
        ({"model_options": {"hidden": True}}, "hidden=True: must be a whole number of at least 1"),
        ({"model": "cnn", "model_options": {"hidden": "x"}}, "model option hidden='x': must be"),
        (
            {"base": "torch.optim:AdamW", "base_options": {"eps": -1}},
            "base='torch.optim:AdamW': does not take the base options eps=-1 .Invalid epsilon",
        ),
        ({"base": "torch.optim:AdamW", "base_options": {"betas": 3}}, "base options betas=3"),
        ({"blocks": {"a": 5}}, r"blocks\['a'\]=5: must be a parameter-name prefix"),
        ({"blocks": {"a": [None]}}, r"blocks\['a'\]=\[None\]: must be a parameter-name prefix"),
        (
            {"strategy": "replay", "strategy_options": {"mem_size": "abc"}},
            "strategy option mem_size='abc': must be a whole number",
        ),
        ({"model": "mlpp"}, "model='mlpp': unknown model"),
        ({"base": "adamm"}, "base='adamm': unknown rule.*torch optimiser"),
        ({"meta": "adamm"}, "meta='adamm': unknown rule.*none"),
        ({"base_options": {"momentum": 0.9}}, "base option momentum=0.9: unknown; known: rho"),
        ({"base_options": {"rho": 1.5}}, "rho=1.5"),
        ({"base_options": {"rho": "abc"}}, "rho='abc': must be a number"),
        ({"base_options": {"rho": True}}, "rho=True: must be a number"),
        ({"base_options": {"eps": None}}, "eps=None: must be a number"),
        ({"base_options": {"accumulate": "False"}}, "accumulate='False': must be true or false"),
        ({"meta_options": {"accumulate": 1}}, "accumulate=1: must be true or false"),
        ({"base": "torch.optim:Adamm"}, "base='torch.optim:Adamm'"),
        ({"meta": "torch.optim:AdamW"}, "meta='torch.optim:AdamW'"),
        ({"blocks": "layers"}, "blocks='layers'"),
        ({"blocks": {"a": ["hidden"]}}, "parameters in no block"),
        ({"device": "gpu"}, "device='gpu'"),
        ({"strategy": "naïve"}, "strategy='naïve': unknown strategy"),
        ({"strategy_options": {"speed": 2}}, "strategy option speed=2: unknown"),
        ({"alpha_min": 1.0}, "alpha0=0.001: must lie between"),
    ],
)
def test_bad_options_are_named_before_anything_is_written(tmp_path, changes, message):
    with pytest.raises(BadArgument, match=message):
        run(small(**changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_network_that_does_not_fit_the_images_is_refused(tmp_path, monkeypatch):
    (tmp_path / "narrow_nets.py").write_text(
        "import torch\n\n\ndef five(input_shape, n_classes):\n"
        "    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 5))\n\n\n"
        "def flat(input_shape, n_classes):\n    return torch.nn.Linear(100, n_classes)\n"
    )
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadArgument, match=r"output has shape \(2, 5\).*\(2, 10\)"):
        prepare(small(model="narrow_nets:five", model_options={}))
    with pytest.raises(BadArgument, match=r"fails on images of shape \(1, 8, 8\)"):
        prepare(small(model="narrow_nets:flat", model_options={}))
