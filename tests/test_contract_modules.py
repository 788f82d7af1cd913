"""Parameters of modules: lazy ones, wrapped ones, and where their units are."""

from __future__ import annotations

import pytest
import torch
from contract_parts import KINDS, SETTINGS, assert_same, everything, learn, make, net
from torch import nn

from clmeta import BadArgument, MetaOptimize

every_kind = pytest.mark.parametrize("kind", KINDS)


# ---- lazy modules ------------------------------------------------------------------------------


def lazy_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.LazyLinear(5), nn.Tanh(), nn.LazyLinear(3))


@every_kind
def test_lazy_modules_may_get_their_shapes_later(kind):
    model = lazy_net()
    optimizer = MetaOptimize(model.named_parameters(), **{**SETTINGS, **KINDS[kind]})
    model(torch.ones(2, 4))
    other, early = make(kind)
    model.load_state_dict(other.state_dict())
    learn(model, optimizer)
    learn(other, early)
    assert_same(everything(model, optimizer), everything(other, early))


def test_a_checkpoint_goes_into_lazy_modules_and_out_of_them():
    model = lazy_net()
    optimizer = MetaOptimize(model.named_parameters(), **SETTINGS)
    fresh = optimizer.state_dict()
    other, trained = make("scalar")
    trained.load_state_dict(fresh)
    learn(other, trained)
    optimizer.load_state_dict(trained.state_dict())
    model(torch.ones(2, 4))
    model.load_state_dict(other.state_dict())
    learn(model, optimizer, seed=3)
    learn(other, trained, seed=3)
    assert_same(everything(model, optimizer), everything(other, trained))


# ---- names of wrapped modules ------------------------------------------------------------------


@pytest.mark.parametrize("blocks", ["layer", "tensor", "head", "weight", {"a": "0", "b": "2"}])
def test_a_compiled_network_has_the_blocks_of_the_network_itself(blocks):
    model = net()
    compiled = torch.compile(model, backend="eager")
    names = [name for name, _ in compiled.named_parameters()]
    assert all(name.startswith("_orig_mod.") for name in names)
    expected = MetaOptimize(model.named_parameters(), blocks=blocks)
    for form in (compiled.named_parameters(), compiled):
        optimizer = MetaOptimize(form, blocks=blocks)
        assert optimizer.block_names == expected.block_names
        assert optimizer.param_groups[0]["param_names"] == expected.param_groups[0]["param_names"]
        optimizer.load_state_dict(expected.state_dict())


def test_parts_compiled_or_checkpointed_alone_have_their_own_names():
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    model = net()
    expected = MetaOptimize(model.named_parameters(), blocks="layer").block_names
    model[0] = torch.compile(model[0], backend="eager")
    model[2] = checkpoint_wrapper(model[2])
    names = [name for name, _ in model.named_parameters()]
    assert names[0] == "0._orig_mod.weight"
    assert names[2] == "2._checkpoint_wrapped_module.weight"
    assert MetaOptimize(model.named_parameters(), blocks="layer").block_names == expected


def test_prefixes_may_be_written_with_or_without_the_wrapper():
    compiled = torch.compile(net(), backend="eager")
    for prefix in ("0", "_orig_mod.0"):
        optimizer = MetaOptimize(compiled.named_parameters(), blocks={"a": prefix, "b": "*"})
        assert optimizer.param_groups[0]["param_names"] == ["0.weight", "0.bias"]


def test_a_data_parallel_module_has_the_names_of_the_network_in_it():
    """From names alone a wrapper's ``module.`` cannot be told from a network's own."""
    model = net()
    expected = MetaOptimize(model, blocks="layer").block_names
    assert MetaOptimize(nn.DataParallel(model), blocks="layer").block_names == expected
    own = nn.ModuleDict({"module": model})
    assert MetaOptimize(own, blocks="layer").block_names == ["module.0", "module.2"]


# ---- units -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d])
@pytest.mark.parametrize("channels", [3, 24])
def test_a_unit_of_a_transposed_convolution_is_an_output(kind, channels):
    dims = int(kind.__name__[-2])
    layer = kind(channels, 5, 4)
    optimizer = MetaOptimize(layer, "sgd", blocks="node", alpha0=1e-2, eta=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        out = layer(torch.ones(2, channels, *(6,) * dims))
        out[:, 1].square().sum().backward()
        optimizer.step()
    moved = optimizer.state[layer.weight]["beta"].exp().squeeze()
    assert moved.shape == (5,)
    still = torch.tensor([True, False, True, True, True])
    torch.testing.assert_close(moved[still], torch.full((4,), 1e-2))
    assert moved[1] != moved[0]


def test_units_of_transposed_convolutions_move_as_a_convolutions_do():
    """The same numbers, with the dimensions of the weight in another order."""
    torch.manual_seed(0)
    layer, mirror = nn.ConvTranspose2d(6, 4, 3, bias=False), nn.Conv2d(6, 4, 3, bias=False)
    mirror.weight.data = layer.weight.data.transpose(0, 1).contiguous()
    first = MetaOptimize(layer, blocks="node", alpha0=1e-2, eta=0.1, weight_decay=0.1)
    second = MetaOptimize(mirror, blocks="node", alpha0=1e-2, eta=0.1, weight_decay=0.1)
    for _ in range(5):
        layer.weight.grad = torch.randn_like(layer.weight)
        mirror.weight.grad = layer.weight.grad.transpose(0, 1).contiguous()
        first.step()
        second.step()
    torch.testing.assert_close(layer.weight.transpose(0, 1), mirror.weight)
    beta = first.state[layer.weight]["beta"]
    assert beta.shape == (1, 4, 1, 1)
    torch.testing.assert_close(beta.flatten(), second.state[mirror.weight]["beta"].flatten())


def test_depthwise_transposed_convolutions_have_a_unit_per_kernel():
    layer = nn.ConvTranspose2d(4, 8, 3, groups=4)
    optimizer = MetaOptimize(layer, blocks="node", alpha0=1e-2, eta=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        layer(torch.randn(2, 4, 5, 5))[:, 3].sum().backward()
        optimizer.step()
    beta = optimizer.state[layer.weight]["beta"]
    assert beta.shape == (4, 2, 1, 1)
    moved = (beta - beta[0, 0]).abs() > 1e-6
    assert moved.nonzero().tolist() == [[1, 1, 0, 0]]


def test_units_that_are_no_slices_of_a_weight_are_refused():
    layer = nn.ConvTranspose2d(4, 4, 3, groups=2)
    with pytest.raises(BadArgument, match=r"blocks='node'.*'weight'.*use 'tensor' or 'weight'"):
        MetaOptimize(layer, blocks="node")
    MetaOptimize(layer, blocks="weight")


def test_a_group_may_say_where_its_units_are():
    """As for a layer of one's own whose weight is (inputs, outputs)."""
    w = nn.Parameter(torch.ones(3, 4))
    optimizer = MetaOptimize([{"params": [("w", w)], "units": (1,)}], blocks="node", eta=0.1)
    for _ in range(2):
        w.grad = torch.ones(3, 4) * torch.tensor([1.0, 0.0, 0.0, 0.0])
        optimizer.step()
    beta = optimizer.state[w]["beta"]
    assert beta.shape == (1, 4)
    assert (beta[0, 0] != beta[0, 1]) and torch.equal(beta[0, 1:], beta[0, 1:2].expand(3))
