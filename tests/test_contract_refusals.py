"""What is no checkpoint of an optimiser like this one is refused by name, and changes nothing."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from contract_parts import KINDS, SETTINGS, assert_same, everything, learn, make, net, twin_of
from torch import nn

from clmeta import BadArgument, MetaOptimize

every_kind = pytest.mark.parametrize("kind", KINDS)
NAMES = ["0.weight", "0.bias", "2.weight", "2.bias"]


def all_of(optimizer):
    """Everything that loading could change."""
    return copy.deepcopy(optimizer.state_dict())


def equal(a, b):
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


def refuses(optimizer, saved, match=None):
    before = all_of(optimizer)
    with pytest.raises(BadArgument, match=match) as caught:
        optimizer.load_state_dict(saved)
    assert "\n" not in str(caught.value)
    assert equal(before, all_of(optimizer))
    assert [group["lr"].item() for group in optimizer.param_groups] == optimizer.alpha.tolist()


# ---- other networks ----------------------------------------------------------------------------


@every_kind
@pytest.mark.parametrize("steps", [0, 3])
def test_a_checkpoint_of_other_shapes_is_refused_by_the_parameters_name(kind, steps):
    model, optimizer = make(kind, model=net(width=6))
    learn(model, optimizer, steps)
    other, loaded = make(kind)
    learn(other, loaded)
    refuses(loaded, optimizer.state_dict(), r"'0.weight'=\[6, 4\].* \(5, 4\) here")


class Two(nn.Module):
    """Two layers of one shape, made in either order."""

    def __init__(self, names):
        super().__init__()
        for name in names:
            setattr(self, name, nn.Linear(4, 4))

    def forward(self, x):
        return self.first(x) + self.second(x)


@pytest.mark.parametrize("kind", ["scalar", "wrapped, fixed", "node"])
def test_a_checkpoint_of_reordered_layers_is_refused_by_name(kind):
    changes = {} if kind == "node" else {"blocks": "scalar"}
    model, optimizer = make(kind, model=Two(["first", "second"]), **changes)
    learn(model, optimizer)
    other, loaded = make(kind, model=Two(["second", "first"]), **changes)
    learn(other, loaded)
    refuses(loaded, optimizer.state_dict(), r"first\.weight.*in another order")


def test_renamed_layers_go_by_their_places_as_in_torch():
    model, optimizer = make("scalar")
    learn(model, optimizer)
    other = nn.ModuleDict({"a": nn.Linear(4, 5), "b": nn.Linear(5, 3)})
    loaded = MetaOptimize(other.named_parameters(), **SETTINGS)
    loaded.load_state_dict(optimizer.state_dict())
    assert loaded.step_sizes() == optimizer.step_sizes()
    h = optimizer.state[model[0].weight]["h"]
    assert torch.equal(loaded.state[other["a"].weight]["h"], h)


def test_checkpoints_pass_between_a_network_and_its_wrappers():
    """Data-parallel wrappers put ``module.`` before every name."""

    class Wrapper(nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

        def forward(self, x):
            return self.module(x)

    for kind in ("layer", "weight"):
        model, optimizer = make(kind)
        wrapped, outer = make(kind, model=Wrapper(net()))
        learn(model, optimizer)
        outer.load_state_dict(optimizer.state_dict())
        wrapped.module.load_state_dict(model.state_dict())
        back, inner = twin_of(model, kind)
        inner.load_state_dict(outer.state_dict())
        for pair in ((model, optimizer), (wrapped, outer), (back, inner)):
            learn(*pair, seed=4)
        assert_same(everything(model, optimizer), everything(wrapped, outer))
        assert_same(everything(model, optimizer), everything(back, inner))


def test_units_along_another_dimension_are_refused():
    layers = [nn.ConvTranspose1d(3, 3, 2) for _ in "ab"]
    by_output = MetaOptimize(layers[0], blocks="node")
    by_row = MetaOptimize(layers[1].named_parameters(), blocks="node")
    layers[1](torch.ones(1, 3, 4)).sum().backward()
    by_row.step()
    refuses(by_output, by_row.state_dict(), r"'weight': beta=\(3, 1, 1\).*\(1, 3, 1\) here")


# ---- other optimisers --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"blocks": "layer"}, "other blocks"),
        ({"base": "sgdm"}, "state_dict base"),
        ({"meta": "sgd"}, "state_dict meta"),
        ({"blocks": {"a": "2", "b": "0"}}, "other blocks"),
        ({"hessian": "exact"}, "state_dict hessian"),
    ],
)
def test_a_checkpoint_of_other_settings_is_refused(changes, message):
    model, optimizer = make("scalar")
    learn(model, optimizer)
    other, loaded = make("scalar", **changes)
    learn(other, loaded)
    refuses(loaded, optimizer.state_dict(), message)
    refuses(optimizer, loaded.state_dict(), message)


def test_blocks_in_another_order_are_refused_as_that():
    _, optimizer = make("scalar", blocks={"a": "0", "b": "2"})
    _, loaded = make("scalar", blocks={"b": "2", "a": "0"})
    refuses(loaded, optimizer.state_dict(), "in another order")


@pytest.mark.parametrize("given", [None, 3, "state", [], {}, {"state": {}}, {"param_groups": []}])
def test_what_is_no_state_dict_is_refused(given):
    for kind in ("scalar", "wrapped"):
        _, optimizer = make(kind)
        refuses(optimizer, given, "state_dict")


def test_torchs_own_state_dicts_are_refused():
    model, optimizer = make("scalar")
    refuses(optimizer, torch.optim.SGD(model.parameters(), lr=1.0).state_dict(), "not MetaOpt")
    refuses(optimizer, torch.optim.AdamW(model.named_parameters()).state_dict(), "not MetaOpt")


# ---- broken dicts ------------------------------------------------------------------------------

LEFT_OUT = object()
WRONG = [None, "x", [], {}, -3, torch.ones(7, 2), float("nan")]


def places(value, path=()):
    """The path of everything inside a nesting."""
    items = []
    if isinstance(value, dict):
        items = [(key, value[key]) for key in value]
    elif isinstance(value, list):
        items = list(enumerate(value))
    for key, each in items:
        yield (*path, key)
        yield from places(each, (*path, key))


def holder(saved, path):
    for key in path[:-1]:
        saved = saved[key]
    return saved


def cases(whole, kind):
    """Everything in a dict, with each thing that may stand in its place or nothing."""
    for path in places(whole):
        # the inner optimiser's own, which it looks at when it steps
        if kind != "wrapped" or not ("groups" in path or (path[0] == "state" and path[-1] != "h")):
            yield from ((path, wrong) for wrong in [LEFT_OUT, *WRONG])


@pytest.mark.parametrize("every", [9, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["layer", "node", "fixed", "wrapped", "diagonal"])
def test_a_dict_that_is_broken_anywhere_is_refused_or_does_no_harm(kind, every):
    """One entry at a time; each ninth case is another of eight things at nearly every place."""
    model, optimizer = make(kind)
    learn(model, optimizer)
    whole = all_of(optimizer)
    refused, other = 0, None
    tried = [*cases(whole, kind)][::every]
    for path, wrong in tried:
        broken = copy.deepcopy(whole)
        where = holder(broken, path)
        if wrong is LEFT_OUT:
            del where[path[-1]]
        else:
            where[path[-1]] = wrong
        if other is None:
            other, loaded = make(kind, seed=2)
            learn(other, loaded, 1)
            before = all_of(loaded)
        try:
            loaded.load_state_dict(broken)
        except BadArgument as error:
            assert "\n" not in str(error), path
            assert equal(before, all_of(loaded)), (path, wrong)
            refused += 1
        else:
            learn(other, loaded, 1)
            assert all(torch.isfinite(p).all() for p in other.parameters()), (path, wrong)
            other = None
    assert refused > len(tried) / 2


@pytest.mark.parametrize("kind", ["layer", "fixed", "wrapped"])
def test_numbers_that_cannot_be_are_refused_by_name(kind):
    """Of a size that no float or count has, or without numbers in them."""
    model, optimizer = make(kind)
    learn(model, optimizer)
    whole = all_of(optimizer)
    before, refused = all_of(optimizer), 0
    for path in list(places(whole)):
        for wrong in (10**400, 2**70, 1e300, 1j, torch.ones((), device="meta")):
            broken = copy.deepcopy(whole)
            holder(broken, path)[path[-1]] = wrong
            try:
                optimizer.load_state_dict(broken)
            except BadArgument as error:
                assert "\n" not in str(error), path
                refused += 1
            else:
                optimizer.load_state_dict(whole)
            assert equal(before, all_of(optimizer)), (path, wrong)
    assert refused > 100


# ---- older checkpoints -------------------------------------------------------------------------

FIRST_FORM = json.loads(
    (Path(__file__).parent / "data" / "checkpoints_first_form.json").read_text()
)


def unpacked(x):
    if isinstance(x, dict) and "bytes" in x:
        return torch.tensor([*bytes.fromhex(x["bytes"])], dtype=torch.uint8)
    if isinstance(x, dict) and "tensor" in x:
        dtype = getattr(torch, x["tensor"])
        return torch.tensor(x["values"], dtype=dtype).reshape(x["shape"])
    if isinstance(x, dict) and "tuple" in x:
        return tuple(map(unpacked, x["tuple"]))
    if isinstance(x, dict):
        return {unpacked(key): unpacked(value) for key, value in x["dict"]}
    return [*map(unpacked, x)] if isinstance(x, list) else x


@pytest.mark.parametrize("kind", FIRST_FORM)
@pytest.mark.parametrize("fresh", [True, False])
def test_checkpoints_of_the_first_form_continue_as_they_did_then(kind, fresh):
    """Four steps were saved by the first version, which then made four more."""
    recorded = FIRST_FORM[kind]
    model, optimizer = make(kind, seed=3, model=net(width=2))
    if not fresh:
        learn(model, optimizer, 3, seed=8)
    with torch.no_grad():
        for p, values in zip(model.parameters(), recorded["weights"], strict=True):
            p.copy_(torch.tensor(values))
    optimizer.load_state_dict(unpacked(recorded["state_dict"]))
    learn(model, optimizer, seed=2)
    for p, values in zip(model.parameters(), recorded["after"], strict=True):
        torch.testing.assert_close(p.detach(), torch.tensor(values), rtol=1e-4, atol=1e-6)
    assert optimizer.step_sizes() == pytest.approx(recorded["step_sizes"], rel=1e-4)


def test_a_checkpoint_of_the_first_form_that_lacks_something_is_refused():
    whole = unpacked(FIRST_FORM["scalar"]["state_dict"])
    for key in whole["meta"]:
        broken = copy.deepcopy(whole)
        del broken["meta"][key]
        _, optimizer = make("scalar", model=net(width=2))
        refuses(optimizer, broken)
    whole["meta"]["beta"] = torch.zeros(3)
    refuses(optimizer, whole, "there are 1 blocks")
