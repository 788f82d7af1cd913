"""When parameters are replaced or added: old weights keep their state, new ones join a block."""

import functools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from clmeta import BadArgument, MetaOptimize
from clmeta.strategies.growth import adopt, grown

GRANULARITIES = ["scalar", "layer", "tensor", "head", "node", "weight"]


class Net(nn.Module):
    """A body and a list of heads."""

    def __init__(self, units=3):
        super().__init__()
        self.body = nn.Linear(4, 5)
        self.heads = nn.ModuleList([nn.Linear(5, units)])

    def forward(self, x, head=0):
        return self.heads[head](torch.relu(self.body(x)))


def learn(net, optimizer, steps=5, head=0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        optimizer.zero_grad()
        x = torch.randn(2, 4, generator=generator)
        net(x, head).square().mean().backward()
        optimizer.step()


def widen(head, units):
    """A wider linear layer with the old weights in its leading corner."""
    wider = nn.Linear(head.in_features, units)
    with torch.no_grad():
        wider.weight[: head.out_features] = head.weight
        wider.bias[: head.out_features] = head.bias
    return wider


def named(net):
    return dict(net.named_parameters())


def state_of(optimizer, p):
    return {
        k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in optimizer.state[p].items()
    }


@pytest.mark.parametrize("blocks", GRANULARITIES)
@pytest.mark.parametrize("base", ["adamw", "lion", "sgdm"])
def test_a_wider_head_keeps_traces_and_base_state_and_pads_with_zeros(blocks, base):
    torch.manual_seed(0)
    net = Net()
    optimizer = MetaOptimize(net.named_parameters(), base, blocks=blocks, alpha0=1e-3, eta=0.1)
    learn(net, optimizer)
    before = state_of(optimizer, net.heads[0].weight)
    sizes, names, known = optimizer.step_sizes(), optimizer.block_names, named(net)
    net.heads[0] = widen(net.heads[0], 7)
    adopt(optimizer, known, named(net))

    after = optimizer.state[net.heads[0].weight]
    assert after.keys() == before.keys()
    assert before["h"].abs().sum() > 0
    for key, value in before.items():
        if isinstance(value, torch.Tensor) and value.dim():
            assert torch.equal(after[key][:3], value), key
            if key == "beta":
                assert torch.allclose(after[key][3:].exp(), torch.tensor(1e-3)), key
            else:
                assert not after[key][3:].any(), key
        else:
            assert after[key] == value, key
    assert optimizer.step_sizes() == sizes
    assert optimizer.block_names == names
    learn(net, optimizer)
    assert optimizer.state[net.heads[0].weight]["h"][3:].abs().sum() > 0
    assert len(optimizer.state) == 4


def test_old_units_move_as_if_nothing_had_grown():
    """With gradients only on old units, growing changes nothing about their trajectory."""
    runs = []
    for grow in (False, True):
        torch.manual_seed(0)
        net = Net()
        optimizer = MetaOptimize(net.named_parameters(), blocks="layer", alpha0=1e-2, eta=0.1)
        learn(net, optimizer)
        if grow:
            known = named(net)
            net.heads[0] = widen(net.heads[0], 6)
            adopt(optimizer, known, named(net))
        for seed in range(5):
            optimizer.zero_grad()
            x = torch.randn(2, 4, generator=torch.Generator().manual_seed(seed))
            net(x)[:, :3].square().mean().backward()
            optimizer.step()
        runs.append((net.heads[0].weight[:3].detach(), net.body.weight.detach(), optimizer.alpha))
    for alone, grew in zip(*runs, strict=True):
        assert torch.allclose(alone, grew, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("blocks", [*GRANULARITIES, {"b": "body", "h": "heads"}, {"b": "*"}])
def test_a_second_head_joins_the_first_ones_block(blocks):
    net = Net()
    optimizer = MetaOptimize(net.named_parameters(), blocks=blocks, alpha0=1e-3)
    learn(net, optimizer)
    known, names = named(net), optimizer.block_names
    net.heads.append(nn.Linear(5, 2))
    adopt(optimizer, known, named(net))
    assert optimizer.block_names == names
    for own in ("weight", "bias"):
        of = [
            next(
                group["name"]
                for group in optimizer.param_groups
                if any(p is getattr(head, own) for p in group["params"])
            )
            for head in net.heads
        ]
        assert of[0] == of[1]
    learn(net, optimizer, head=1)
    assert optimizer.state[net.heads[1].weight]["h"].abs().sum() > 0


def test_a_parameter_that_could_belong_to_several_blocks_is_refused_with_the_mend():
    net = Net()
    optimizer = MetaOptimize(net.named_parameters(), blocks="layer")
    known = named(net)
    net.adapter = nn.Linear(4, 4)
    with pytest.raises(BadArgument, match=r"'adapter.weight'.*several blocks; name its block"):
        adopt(optimizer, known, named(net))


@pytest.mark.parametrize(
    "base",
    [
        torch.optim.AdamW,
        functools.partial(torch.optim.SGD, momentum=0.9),
        torch.optim.Adafactor,
        functools.partial(torch.optim.AdamW, amsgrad=True),
    ],
)
def test_wrapped_optimisers_grow_too(base):
    torch.manual_seed(0)
    net = Net()
    optimizer = MetaOptimize(net.named_parameters(), base, blocks="layer", alpha0=1e-3)
    learn(net, optimizer)
    before, known = state_of(optimizer, net.heads[0].weight), named(net)
    net.heads[0] = widen(net.heads[0], 7)
    net.heads.append(nn.Linear(5, 2))
    adopt(optimizer, known, named(net))
    after = optimizer.state[net.heads[0].weight]
    assert torch.equal(after["h"][:3], before["h"])
    assert {k for k in before if k != "h"} == {k for k in after if k != "h"} != set()
    learn(net, optimizer)
    learn(net, optimizer, head=1)
    assert torch.isfinite(net.heads[0].weight).all()
    assert optimizer.state[net.heads[0].weight]["h"][3:].abs().sum() > 0


def test_a_plain_torch_optimiser_is_treated_alike():
    net = Net()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    learn(net, optimizer)
    before, known = state_of(optimizer, net.heads[0].weight), named(net)
    net.heads[0] = widen(net.heads[0], 4)
    adopt(optimizer, known, named(net))
    after = optimizer.state[net.heads[0].weight]
    assert torch.equal(after["exp_avg"][:3], before["exp_avg"])
    assert after["step"] == 5
    learn(net, optimizer)


def test_what_was_left_out_of_the_optimiser_stays_out():
    net = Net()
    optimizer = MetaOptimize(net.heads.named_parameters())
    known = named(net)
    net.heads[0] = widen(net.heads[0], 4)
    net.body = nn.Linear(4, 5)
    adopt(optimizer, known, named(net))
    (group,) = optimizer.param_groups
    assert [tuple(p.shape) for p in group["params"]] == [(4, 5), (4,)]


def test_a_state_that_cannot_follow_is_refused():
    old, new = torch.zeros(3, 5), torch.zeros(7, 5)
    with pytest.raises(BadArgument, match=r"state 'q' of shape \(2, 2\).*cannot follow"):
        grown({"q": torch.zeros(2, 2)}, old, new)


@given(
    old=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    more=st.lists(st.integers(0, 3), min_size=3, max_size=3),
    data=st.data(),
)
def test_padding_keeps_every_old_number_and_adds_only_zeros(old, more, data):
    new = [a + b for a, b in zip(old, more, strict=False)]
    kept = [data.draw(st.sampled_from([1, size])) for size in old]
    value = torch.randn(kept).abs() + 1
    (out,) = grown({"v": value}, torch.zeros(old), torch.zeros(new)).values()
    assert out.sum().item() == pytest.approx(value.sum().item())
    assert all(have in (1, want) for have, want in zip(out.shape, new, strict=True))
