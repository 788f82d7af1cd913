"""Torch's checkpoints, hooks and copies take all of MetaOptimize, and leave nothing shared."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
import torch.distributed.checkpoint as dcp
from contract_parts import KINDS, assert_same, everything, learn, make, net, twin_of
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

every_kind = pytest.mark.parametrize("kind", KINDS)
FORMS = {
    "nested": StateDictOptions(),
    "flat": StateDictOptions(flatten_optimizer_state_dict=True),
    "full": StateDictOptions(full_state_dict=True, cpu_offload=True),
}
every_form = pytest.mark.parametrize("options", FORMS.values(), ids=FORMS)


def assert_goes_on_alike(first, second):
    """Two (network, optimiser) pairs make the same steps."""
    assert first[1].step_sizes() == second[1].step_sizes()
    for pair in (first, second):
        learn(*pair, seed=2)
    assert_same(everything(*first), everything(*second))


# ---- distributed checkpoints -------------------------------------------------------------------


@every_kind
@every_form
def test_a_distributed_checkpoint_continues_in_an_optimiser_that_has_not_stepped(kind, options):
    model, optimizer = make(kind)
    learn(model, optimizer)
    saved = copy.deepcopy(get_optimizer_state_dict(model, optimizer, options=options))
    other, loaded = twin_of(model, kind)
    set_optimizer_state_dict(other, loaded, saved, options=options)
    assert_goes_on_alike((model, optimizer), (other, loaded))


@every_kind
@every_form
def test_a_distributed_checkpoint_continues_in_an_optimiser_that_went_another_way(kind, options):
    model, optimizer = make(kind)
    learn(model, optimizer)
    saved = copy.deepcopy(get_optimizer_state_dict(model, optimizer, options=options))
    other, loaded = make(kind, seed=3)
    learn(other, loaded, steps=7, seed=5)
    other.load_state_dict(model.state_dict())
    set_optimizer_state_dict(other, loaded, saved, options=options)
    assert_goes_on_alike((model, optimizer), (other, loaded))


@every_kind
@every_form
@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_a_distributed_checkpoint_goes_through_files(kind, options, tmp_path):
    model, optimizer = make(kind)
    learn(model, optimizer)
    saved = get_optimizer_state_dict(model, optimizer, options=options)
    dcp.save(saved, checkpoint_id=tmp_path)
    other, loaded = twin_of(model, kind)
    saved = get_optimizer_state_dict(other, loaded, options=options)
    dcp.load(saved, checkpoint_id=tmp_path)
    set_optimizer_state_dict(other, loaded, saved, options=options)
    assert_goes_on_alike((model, optimizer), (other, loaded))


@every_kind
def test_asking_a_fresh_optimiser_for_its_state_moves_nothing(kind):
    model, optimizer = make(kind)
    other, asked = make(kind)
    saved = get_optimizer_state_dict(other, asked)
    assert set(saved["state"]) == {name for name, _ in model.named_parameters()}
    assert_same([*model.parameters()], [*other.parameters()])
    assert asked.step_sizes() == optimizer.step_sizes()
    if "wrapped" not in kind:  # torch's own optimisers count this as a step
        assert_goes_on_alike((model, optimizer), (other, asked))


def test_a_distributed_checkpoint_of_another_rule_is_refused():
    model, optimizer = make("scalar")
    learn(model, optimizer)
    saved = get_optimizer_state_dict(model, optimizer)
    other, loaded = twin_of(model, "scalar", meta="lion")
    with pytest.raises(ValueError, match="state_dict meta"):
        set_optimizer_state_dict(other, loaded, saved)


# ---- hooks -------------------------------------------------------------------------------------


@every_kind
def test_hooks_see_all_of_a_state_dict_and_may_replace_it(kind):
    model, optimizer = make(kind)
    learn(model, optimizer)
    calls = []
    optimizer.register_state_dict_pre_hook(lambda o: calls.append("before saving"))

    def wrap(o, saved):
        calls.append("after saving")
        assert [group["lr"].item() for group in saved["param_groups"]] == o.alpha.tolist()
        return {"optimiser": copy.deepcopy(saved), "epoch": 3}

    optimizer.register_state_dict_post_hook(wrap)
    saved = optimizer.state_dict()
    assert saved["epoch"] == 3

    other, loaded = twin_of(model, kind)
    loaded.register_load_state_dict_pre_hook(lambda o, given: given["optimiser"])
    loaded.register_load_state_dict_post_hook(lambda o: calls.append(o.step_sizes()))
    loaded.load_state_dict(saved)
    assert calls == ["before saving", "after saving", optimizer.step_sizes()]
    assert_goes_on_alike((model, optimizer), (other, loaded))


def test_hooks_may_change_what_is_saved_and_loaded():
    model, optimizer = make("layer")
    learn(model, optimizer)
    optimizer.register_state_dict_post_hook(lambda o, saved: saved.update(note="kept"))
    saved = optimizer.state_dict()
    assert saved["note"] == "kept"
    _, loaded = twin_of(model, "layer")

    def halve(o, given):
        given["param_groups"] = [{**g, "eta": g["eta"] / 2} for g in given["param_groups"]]

    handle = loaded.register_load_state_dict_pre_hook(halve)
    loaded.load_state_dict(saved)
    assert loaded.param_groups[0]["eta"] == optimizer.param_groups[0]["eta"] / 2
    handle.remove()
    loaded.load_state_dict(saved)
    assert loaded.param_groups[0]["eta"] == optimizer.param_groups[0]["eta"]


# ---- nothing shared ----------------------------------------------------------------------------


@every_kind
def test_loading_from_a_live_optimiser_shares_nothing_with_it(kind):
    model, optimizer = make(kind)
    learn(model, optimizer)
    alone, kept = twin_of(model, kind)
    kept.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    other, loaded = twin_of(model, kind)
    loaded.load_state_dict(optimizer.state_dict())
    learn(model, optimizer, steps=5, seed=9)
    assert_goes_on_alike((alone, kept), (other, loaded))
    before = everything(model, optimizer)
    learn(other, loaded, steps=5, seed=9)
    assert_same(before, everything(model, optimizer))


@every_kind
@pytest.mark.parametrize("how", ["pickle", "deepcopy", "torch.save"])
def test_a_copy_of_the_whole_goes_on_alone(kind, how):
    model, optimizer = make(kind)
    learn(model, optimizer)
    both = (model, optimizer)
    if how == "pickle":
        other, twin = pickle.loads(pickle.dumps(both))
    elif how == "deepcopy":
        other, twin = copy.deepcopy(both)
    else:
        file = io.BytesIO()
        torch.save(both, file)
        file.seek(0)
        other, twin = torch.load(file, weights_only=False)
    before = everything(model, optimizer)
    learn(other, twin, seed=5)
    assert_same(before, everything(model, optimizer))
    learn(model, optimizer, seed=5)
    assert_goes_on_alike((model, optimizer), (other, twin))
    assert twin.param_groups[0]["lr"].item() == twin.alpha[0].item()


@every_kind
def test_a_state_dict_is_read_as_weights_only(kind, tmp_path):
    model, optimizer = make(kind)
    learn(model, optimizer)
    torch.save(optimizer.state_dict(), tmp_path / "optimiser.pt")
    other, loaded = twin_of(model, kind)
    loaded.load_state_dict(torch.load(tmp_path / "optimiser.pt", weights_only=True))
    assert_goes_on_alike((model, optimizer), (other, loaded))


def test_a_trace_keeps_its_layout_and_precision():
    weights = [torch.nn.Parameter(torch.randn(2, 3, 4, 4, dtype=torch.bfloat16)) for _ in "ab"]
    weights[0].data = weights[0].data.contiguous(memory_format=torch.channels_last)
    weights[1].data = weights[1].data.contiguous(memory_format=torch.channels_last)
    first, second = (torch.nn.ParameterList([w]) for w in weights)
    optimizers = [make("scalar", model=m)[1] for m in (first, second)]
    weights[0].grad = torch.randn_like(weights[0])
    optimizers[0].step()
    optimizers[1].load_state_dict(optimizers[0].state_dict())
    h = optimizers[1].state[weights[1]]["h"]
    assert h.dtype == torch.float32
    assert h.stride() == weights[1].stride()
    assert torch.equal(h, optimizers[0].state[weights[0]]["h"])


def test_a_network_of_another_precision_takes_the_trace_in_its_own():
    model, optimizer = make("scalar", model=net().double())
    x = torch.randn(8, 4, dtype=torch.float64)
    model(x).square().mean().backward()
    optimizer.step()
    other, loaded = make("scalar")
    loaded.load_state_dict(optimizer.state_dict())
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert loaded.state[q]["h"].dtype == torch.float32
        torch.testing.assert_close(loaded.state[q]["h"], optimizer.state[p]["h"].float())
