"""Weights sharded over processes (DTensor, as FSDP2 makes them) learn as whole ones do."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from contract_parts import KINDS, SETTINGS
from sharded_parts import WORLD, full, in_two_processes, learn, net, optimizer_of, same, sharded
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from clmeta import BadArgument, MetaOptimize
from clmeta.rules import Rule

SHARDED = [kind for kind in KINDS if kind not in ("exact", "diagonal")]

pytestmark = pytest.mark.skipif(
    not dist.is_available() or not dist.is_gloo_available(), reason="needs gloo"
)


def learns_as_whole(rank, kinds):
    for kind in kinds:
        whole, parts = net(), sharded()
        first, second = optimizer_of(whole, kind), optimizer_of(parts, kind)
        for seed in range(3):
            learn(whole, first, seed=seed)
            learn(parts, second, seed=seed)
            same((whole, first), (parts, second), rtol=1e-4, atol=1e-6)
        sizes = [None, None]
        dist.all_gather_object(sizes, second.step_sizes())
        assert sizes[0] == sizes[1], kind


def withholds_everywhere(rank, kinds):
    for kind in kinds:
        parts = sharded()
        optimizer = optimizer_of(parts, kind, nonfinite="skip")
        learn(parts, optimizer, 1)
        before = [full(p.detach()).clone() for p in parts.parameters()]
        sizes = optimizer.step_sizes()
        for p in parts.parameters():
            p.grad = torch.zeros_like(p)
        if rank == 1:
            parts[0].weight.grad.to_local()[0, 0] = math.nan
        optimizer.step()
        assert optimizer.withheld == 1, kind
        assert optimizer.step_sizes() == sizes, kind
        for p, q in zip(before, parts.parameters(), strict=True):
            assert torch.equal(p, full(q.detach())), kind


FORMS = {
    "nested": {},
    "flat": {"flatten_optimizer_state_dict": True},
    "full": {"full_state_dict": True},
    "from one": {"full_state_dict": True, "broadcast_from_rank0": True, "cpu_offload": True},
}


def saves_and_loads(rank, kinds, folder):
    for kind in kinds:
        for form, how in FORMS.items():
            options = StateDictOptions(**how)
            parts = sharded()
            optimizer = optimizer_of(parts, kind)
            learn(parts, optimizer)
            weights = get_model_state_dict(parts, options=options)
            saved = get_optimizer_state_dict(parts, optimizer, options=options)
            saved, weights = copy.deepcopy(saved), copy.deepcopy(weights)
            again = sharded()
            loaded = optimizer_of(again, kind)
            if form == "nested":
                place = folder / kind.replace(" ", "")
                dcp.save({"weights": weights, "optimiser": saved}, checkpoint_id=place)
                held = {
                    "weights": get_model_state_dict(again),
                    "optimiser": get_optimizer_state_dict(again, loaded),
                }
                dcp.load(held, checkpoint_id=place)
                weights, saved = held["weights"], held["optimiser"]
            set_model_state_dict(again, weights, options=options)
            set_optimizer_state_dict(again, loaded, saved, options=options)
            assert loaded.step_sizes() == optimizer.step_sizes(), (kind, form)
            for pair in ((parts, optimizer), (again, loaded)):
                learn(*pair, seed=2)
            same((parts, optimizer), (again, loaded), rtol=0, atol=0)


def changes_hands(rank, kinds):
    for kind in kinds:
        options = StateDictOptions(full_state_dict=True)
        whole, parts = net(), sharded()
        first, second = optimizer_of(whole, kind), optimizer_of(parts, kind)
        learn(whole, first)
        learn(parts, second)
        for optimizer, other in ((first, second), (second, first)):
            before = other.step_sizes()
            with pytest.raises(BadArgument, match="full_state_dict=True"):
                optimizer.load_state_dict(other.state_dict())
            assert other.step_sizes() == before
        saved = copy.deepcopy(get_optimizer_state_dict(whole, first, options=options))
        again = sharded()
        loaded = optimizer_of(again, kind)
        set_model_state_dict(again, whole.state_dict(), options=options)
        set_optimizer_state_dict(again, loaded, saved, options=options)
        learn(whole, first, seed=3)
        learn(again, loaded, seed=3)
        same((whole, first), (again, loaded), rtol=1e-4, atol=1e-6)
        saved = get_optimizer_state_dict(again, loaded, options=options)
        weights = get_model_state_dict(again, options=options)
        back = net()
        back.load_state_dict(weights)
        owner = optimizer_of(back, kind)
        set_optimizer_state_dict(back, owner, saved)
        learn(back, owner, seed=4)
        learn(again, loaded, seed=4)
        same((back, owner), (again, loaded), rtol=1e-4, atol=1e-6)


def says_which_engine(rank):
    parts = sharded()
    with pytest.raises(BadArgument, match="engine='native'"):
        optimizer = optimizer_of(parts, "scalar", engine="native")
        learn(parts, optimizer)


def cut_in_any_way(rank, kinds):
    """Rows, columns or nothing shared out, and gradients cut in another way than weights."""
    mesh = init_device_mesh("cpu", (WORLD,))
    cuts = [Shard(0), Shard(1), Replicate(), Shard(1), Shard(0)]
    shapes = [(5, 3), (3, 5), (4, 2), (2, 6), (1,)]
    for kind in kinds:
        numbers = torch.Generator().manual_seed(0)
        whole = [nn.Parameter(torch.randn(shape, generator=numbers)) for shape in shapes]
        parts = [
            nn.Parameter(distribute_tensor(w.detach().clone(), mesh, [cut]))
            for w, cut in zip(whole, cuts, strict=True)
        ]
        units = {"units": (1,)} if kind == "node" else {}
        named = [[(f"{i}", p) for i, p in enumerate(ps)] for ps in (whole, parts)]
        groups = [[{"params": each[:3]}, {"params": each[3:], **units}] for each in named]
        first, second = (MetaOptimize(g, **{**SETTINGS, **KINDS[kind]}) for g in groups)
        for _ in range(4):
            for p, q in zip(whole, parts, strict=True):
                p.grad = torch.randn(p.shape, generator=numbers)
                how = [Replicate()] if p.dim() > 1 else q.placements
                q.grad = distribute_tensor(p.grad.clone(), mesh, how)
            first.step()
            second.step()
        models = (nn.ParameterList(whole), nn.ParameterList(parts))
        same((models[0], first), (models[1], second), rtol=1e-4, atol=1e-6)


class Normed(Rule):
    """A direction of length 1: no formula of each number alone."""

    def update(self, g, state, t):
        return g / g.norm(), state


def says_what_cannot_be(rank):
    parts = sharded()
    optimizer = MetaOptimize(parts.named_parameters(), Normed())
    with pytest.raises(BadArgument, match=r"base='Normed': .*sharded"):
        learn(parts, optimizer)
    optimizer = optimizer_of(sharded(), "exact")
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad = torch.zeros_like(p).requires_grad_()
    with pytest.raises(BadArgument, match="hessian='exact': sharded weights"):
        optimizer.step()


def wrapped_learns_as_whole(rank):
    """With and without a closure, under weight decay."""
    sizes = [wrapped_sizes(shard) for shard in (False, True)]
    assert sizes[1] == pytest.approx(sizes[0], rel=1e-4)
    assert all(size != pytest.approx(1e-4, rel=1e-2) for size in sizes[1].values())


def wrapped_sizes(shard):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    if shard:
        fully_shard(model, mesh=init_device_mesh("cpu", (WORLD,)))
    optimizer = MetaOptimize(
        model.named_parameters(), torch.optim.AdamW, blocks="layer", eta=0.05, weight_decay=0.1
    )
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(1))

    def closure():
        optimizer.zero_grad()
        loss = (model(x) ** 2).sum()
        loss.backward()
        return loss

    for i in range(6):
        if i % 2:
            optimizer.step(closure)
        else:
            closure()
            optimizer.step()
    return optimizer.step_sizes()


LAWS = {
    "wrapped optimisers learn with closures too": (wrapped_learns_as_whole,),
    "sharded weights learn as whole ones": (learns_as_whole, SHARDED),
    "what is not finite in one process is withheld in all": (withholds_everywhere, SHARDED),
    "full checkpoints pass between whole and sharded weights": (
        changes_hands,
        ["scalar", "node", "weight", "wrapped"],
    ),
    "weights may be cut along any dimension": (
        cut_in_any_way,
        ["tensor", "node", "weight", "fixed weights"],
    ),
    "an engine that cannot step shards says so": (says_which_engine,),
    "what needs whole tensors is refused by name": (says_what_cannot_be,),
}
CHECKPOINTED = ["scalar", "layer", "node", "weight", "fixed", "wrapped"]
EACH = [f"checkpoints of sharded weights continue ({kind})" for kind in CHECKPOINTED]


def laws(folder):
    """All of them, with what they are tried on."""
    own = zip(EACH, CHECKPOINTED, strict=True)
    return LAWS | {name: (saves_and_loads, [kind], folder) for name, kind in own}


@pytest.fixture(scope="module")
def outcomes(readers, tmp_path_factory):
    """All laws are tried in one pair of processes."""
    return in_two_processes(readers(), __name__, tmp_path_factory.mktemp("sharded"))


@pytest.mark.parametrize("law", [*LAWS, *EACH])
def test_of_sharded_weights(law, outcomes):
    assert outcomes[law] == "holds", outcomes[law]
