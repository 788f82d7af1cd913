"""Which parameters MetaOptimize takes, in which form, and what becomes of their names."""

from __future__ import annotations

import copy

import pytest
import torch
from contract_parts import KINDS, SETTINGS, assert_same, everything, learn, make, net
from torch import nn

from clmeta import BadArgument, MetaOptimize

every_kind = pytest.mark.parametrize("kind", KINDS)


# ---- containers --------------------------------------------------------------------------------

FORMS = {
    "names": lambda model: model.named_parameters(),
    "module": lambda model: model,
    "list": lambda model: list(model.named_parameters()),
    "items": lambda model: dict(model.named_parameters()).items(),
    "group of names": lambda model: [{"params": model.named_parameters(), "name": "all"}],
    "group of a module": lambda model: [{"params": model, "name": "all"}],
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("blocks", ["scalar", "layer", "weight"])
def test_named_parameters_come_in_any_ordered_form(form, blocks):
    model, optimizer = make("scalar", blocks=blocks)
    other = net()
    given = MetaOptimize(form(other), **{**SETTINGS, "blocks": blocks})
    assert given.block_names == optimizer.block_names
    learn(model, optimizer)
    learn(other, given)
    assert_same(everything(model, optimizer), everything(other, given))


@pytest.mark.parametrize("form", [list, tuple, iter, lambda ps: (p for p in ps), nn.ParameterList])
def test_parameters_without_names_come_in_any_ordered_form(form):
    params = [nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3))]
    assert len(MetaOptimize(form(params)).param_groups[0]["params"]) == 2
    groups = MetaOptimize([{"params": form(params)}]).param_groups
    assert [p is q for p, q in zip(groups[0]["params"], params, strict=True)] == [True, True]


def test_a_set_is_taken_with_a_warning_and_refused_in_a_group_as_by_torch():
    params = {nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))}
    for make_one in (torch.optim.AdamW, MetaOptimize):
        with pytest.warns(FutureWarning, match="set"):
            optimizer = make_one(params)
        assert set(optimizer.param_groups[0]["params"]) == params
    with pytest.warns(FutureWarning, match="pass a list"):
        MetaOptimize(frozenset(params))
    with pytest.raises(BadArgument, match="has no order"):
        MetaOptimize([{"params": params}])
    with pytest.raises(BadArgument, match="has no order"):
        MetaOptimize([nn.Parameter(torch.ones(1))]).add_param_group({"params": params})


def test_an_empty_group_is_a_block_as_in_torch():
    w = nn.Parameter(torch.ones(2))
    optimizer = MetaOptimize([{"params": [w]}, {"params": [], "name": "none"}], alpha0=0.25)
    w.grad = torch.ones(2)
    optimizer.step()
    assert optimizer.step_sizes()["none"] == 0.25
    optimizer.add_param_group({"params": []})
    with pytest.raises(BadArgument, match="at least one parameter"):
        MetaOptimize([{"params": []}])


# ---- add_param_group ---------------------------------------------------------------------------

ADDED = {
    "names": lambda layer: list(layer.named_parameters()),
    "generator": lambda layer: layer.named_parameters(),
    "module": lambda layer: layer,
    "no names": lambda layer: list(layer.parameters()),
    "one tensor": lambda layer: layer.weight,
}


@every_kind
@pytest.mark.parametrize("form", ADDED.values(), ids=ADDED)
@pytest.mark.parametrize("named", [True, False])
def test_a_group_is_added_with_or_without_names(kind, form, named):
    if not named and kind not in ("scalar", "tensor", "node", "weight", "exact"):
        pytest.skip("needs names")
    model = net()
    given = model.named_parameters() if named else model.parameters()
    blocks = {} if named else {"blocks": "tensor"}
    optimizer = MetaOptimize(given, **{**SETTINGS, **KINDS[kind], **blocks})
    learn(model, optimizer)
    before = optimizer.step_sizes()
    layer = nn.Linear(3, 3)
    optimizer.add_param_group({"params": form(layer), "name": "new", "alpha0": 0.05})
    assert optimizer.step_sizes() == pytest.approx({**before, "new": 0.05})
    added = len(optimizer.param_groups[-1]["params"])
    grown = nn.Sequential(model, layer if added == 2 else Weight(layer.weight))
    learn(grown, optimizer)
    assert all(torch.isfinite(p).all() for p in grown.parameters())
    if optimizer.meta_rule is not None:
        assert all(optimizer.state[p]["h"].any() for p in optimizer.param_groups[-1]["params"])


class Weight(nn.Module):
    """A linear layer of one tensor."""

    def __init__(self, weight):
        super().__init__()
        self.weight = weight

    def forward(self, x):
        return nn.functional.linear(x, self.weight)


W = nn.Parameter(torch.ones(2))


@pytest.mark.parametrize(
    ("group", "message"),
    [
        ({"params": [nn.Parameter(torch.ones(1))], "name": "0"}, "a block has this name"),
        ({"params": [("0.weight", None)]}, "not a mix"),
        ({"params": [W, ("b", W)]}, "not a mix"),
        ({"params": [W, W]}, "listed twice"),
        ({"params": [("a", W), ("a", nn.Parameter(torch.ones(1)))]}, "have this name"),
        ({"params": [W * 2]}, "computed from other tensors"),
        ({"params": [torch.ones(2, dtype=torch.int64)]}, "floating-point"),
        ({"params": None}, "named_parameters"),
        ({"params": "weights"}, "named_parameters"),
        ({"params": {"a": W}}, r"params\.items\(\)"),
        ({"name": "x"}, "with the key 'params'"),
        (None, "with the key 'params'"),
        ([W], "with the key 'params'"),
        ({"params": [W], "lr": 0.1}, "is called alpha0"),
        ({"params": [W], "name": 3}, r"\['name'\]=3: must be a text"),
        ({"params": [W], "alpha0": "x"}, "alpha0='x'"),
        ({"params": [W], "gamma": 2}, "gamma=2"),
        ({"params": [W], "units": 1}, r"\['units'\]=1: lists the dimensions"),
        ({"params": [nn.Parameter(torch.ones(2, 2))], "units": (2,)}, "no such dimension"),
    ],
)
def test_a_group_that_cannot_be_is_refused_and_changes_nothing(group, message):
    _, optimizer = make("layer")
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(BadArgument, match=message) as caught:
        optimizer.add_param_group(group)
    assert "\n" not in str(caught.value)
    assert optimizer.state_dict() == before
    assert len(optimizer.param_groups) == len(optimizer.alpha)


def test_a_parameter_is_in_one_block_only():
    model, optimizer = make("layer")
    with pytest.raises(BadArgument, match=r"'x'.*is in block '2' already"):
        optimizer.add_param_group({"params": [("x", model[2].weight)]})
    with pytest.raises(BadArgument, match="is in block 'group0' already"):
        MetaOptimize([{"params": [W]}, {"params": [W]}])


def test_names_are_kept_where_torch_keeps_them():
    model, optimizer = make("layer")
    theirs = torch.optim.AdamW(model.named_parameters())
    names = [name for group in optimizer.param_groups for name in group["param_names"]]
    assert names == theirs.param_groups[0]["param_names"]
    unnamed = MetaOptimize(model.parameters())
    assert "param_names" not in unnamed.param_groups[0]
    assert "param_names" not in torch.optim.AdamW(model.parameters()).param_groups[0]


# ---- parameters without numbers ----------------------------------------------------------------


@pytest.mark.parametrize("base", ["adamw", "lion", torch.optim.AdamW])
@pytest.mark.parametrize("blocks", ["scalar", "layer", "tensor", "node", "weight"])
@pytest.mark.parametrize("empty", [(0, 4), (3, 0), (0,)])
@pytest.mark.parametrize("first", [True, False])
def test_a_parameter_without_elements_stays_at_its_first_step_size(base, blocks, empty, first):
    if base is torch.optim.AdamW and blocks in ("node", "weight"):
        pytest.skip("a wrapped optimiser has one step size per block")
    w, e = nn.Parameter(torch.ones(3, 2)), nn.Parameter(torch.empty(empty))
    named = [("one.w", w), ("two.e", e)]
    named = named[::-1] if first else named
    optimizer = MetaOptimize(named, base, blocks=blocks, alpha0=1e-2, eta=0.1)
    for _ in range(3):
        w.grad, e.grad = torch.ones(3, 2), torch.empty(empty)
        optimizer.step()
    sizes = optimizer.step_sizes()
    assert optimizer.withheld == 0
    assert sizes.pop("all", sizes.pop("one", sizes.pop("one.w", None))) > 1e-2
    assert all(size == pytest.approx(1e-2) for size in sizes.values())
    other = MetaOptimize(named, base, blocks=blocks, alpha0=1e-2, eta=0.1)
    other.load_state_dict(optimizer.state_dict())
    assert other.step_sizes() == optimizer.step_sizes()


def test_only_parameters_without_elements_are_stepped_too():
    e = nn.Parameter(torch.empty(0, 4))
    for blocks in ("scalar", "node", "weight"):
        optimizer = MetaOptimize([("e", e)], blocks=blocks, alpha0=1e-2)
        e.grad = torch.empty(0, 4)
        optimizer.step()
        assert [*optimizer.step_sizes().values()] == pytest.approx([1e-2])
