"""Every optimiser of torch's as a base: the same steps, observed, saved and learned from."""

from __future__ import annotations

import copy
import inspect
import io
import math
import pickle

import pytest
import torch
from torch import nn
from wrapped_parts import (
    LEARNING,
    OWN,
    TORCHS,
    Counting,
    give,
    gradients,
    held,
    make_base,
    make_own,
    parameters,
    run,
)

from clmeta import MetaOptimize

every_torch = pytest.mark.parametrize("name", LEARNING)
BASES = (*LEARNING, *OWN)


def wrapped(name, settings=None, seed=0):
    kind = TORCHS.get(name)
    params = parameters(kind.shapes if kind else [(4, 3), (4,)], seed)
    base = OWN[name] if name in OWN else make_base(name)
    return params, MetaOptimize(params, base, **({"blocks": "tensor"} | (settings or {})))


def grads_of(name, steps, seed=1):
    kind = TORCHS.get(name)
    return gradients(steps, kind.shapes if kind else [(4, 3), (4,)], seed)


def is_sparse(name):
    return name in TORCHS and TORCHS[name].sparse


def test_the_table_names_every_optimiser_of_torchs():
    classes = {n for n, kind in vars(torch.optim).items() if inspect.isclass(kind)}
    known = {*TORCHS, "Optimizer"}
    assert classes & known == known & classes
    assert classes <= known | {"Muon", "Adafactor"}


@every_torch
def test_a_fixed_step_size_makes_torchs_own_steps(name):
    params, ours = wrapped(name, {"meta": "none", "alpha0": 1e-2})
    others = parameters(TORCHS[name].shapes)
    theirs = make_own(name, others, 1e-2)
    run(ours, params, grads_of(name, 10), is_sparse(name))
    run(theirs, others, grads_of(name, 10), is_sparse(name))
    for p, q in zip(params, others, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-12)


@every_torch
@pytest.mark.parametrize("kappa", [0.0, 0.1])
def test_steps_are_observed_as_the_algorithm_says(name, kappa):
    """z = <h, g>; dw = the base's step - alpha kappa w; h <- gamma (1 - alpha kappa) h + dw."""
    eta, gamma, sparse = 0.05, 0.9, is_sparse(name)
    settings = {"meta": "sgd", "alpha0": 1e-2, "eta": eta, "gamma": gamma, "weight_decay": kappa}
    params, ours = wrapped(name, settings)
    others = parameters(TORCHS[name].shapes)
    theirs = make_own(name, [{"params": [p]} for p in others], 1e-2)
    beta = [math.log(1e-2)] * len(others)
    h = [torch.zeros_like(p) for p in others]
    for grads in grads_of(name, 15):
        give(params, grads, sparse)
        ours.step()
        give(others, grads, sparse)
        before = [p.detach().clone() for p in others]
        for group, b in zip(theirs.param_groups, beta, strict=True):
            group["lr"] = math.exp(b)
        theirs.step()
        for i, (p, w) in enumerate(zip(others, before, strict=True)):
            alpha = math.exp(beta[i])
            beta[i] -= eta * float((h[i] * grads[i]).sum())
            p.data.sub_(alpha * kappa * w)
            h[i] = gamma * (1 - alpha * kappa) * h[i] + (p.detach() - w)
    for p, q, trace in zip(params, others, h, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(ours.state[p]["h"], trace, rtol=1e-9, atol=1e-12)
    assert list(ours.step_sizes().values()) == pytest.approx([math.exp(b) for b in beta])
    assert all(abs(b - math.log(1e-2)) > 1e-6 for b in beta)


@pytest.mark.parametrize("name", [n for n, k in TORCHS.items() if k.refused])
def test_an_optimiser_without_a_step_size_to_learn_still_runs_with_a_fixed_one(name):
    params, others = parameters([(4, 3)]), parameters([(4, 3)])
    ours = MetaOptimize(params, make_base(name), "none", alpha0=1e-2)
    theirs = make_own(name, others, 1e-2)
    for (p,), optimizer in ((params, ours), (others, theirs)):

        def closure(p=p, optimizer=optimizer):
            optimizer.zero_grad()
            loss = (p**4).sum()
            loss.backward()
            return loss

        for _ in range(4):
            optimizer.step(closure)
    torch.testing.assert_close(params[0], others[0], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("option", ["foreach", "fused", "maximize"])
@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW", "Adagrad"])
def test_options_change_nothing_but_the_way(name, option):
    params, others = parameters(), parameters()
    plain = MetaOptimize(params, make_base(name), eta=0.05)
    other = MetaOptimize(others, make_base(name, **{option: True}), eta=0.05)
    sign = -1 if option == "maximize" else 1
    for grads in gradients(20):
        give(params, grads)
        give(others, [sign * g for g in grads])
        plain.step()
        other.step()
    for p, q in zip(params, others, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-12)
    assert other.step_sizes()["all"] == pytest.approx(plain.step_sizes()["all"])
    assert plain.step_sizes()["all"] != pytest.approx(1e-4, rel=1e-3)


def test_an_ascent_that_is_an_attribute_counts_as_well():
    class Ascent(torch.optim.SGD):
        maximize = True

        def step(self, closure=None):
            for group in self.param_groups:
                for p in group["params"]:
                    p.data.add_(p.grad, alpha=group["lr"])

    p, q = parameters([(3,)]), parameters([(3,)])
    up, down = MetaOptimize(p, Ascent, eta=0.05), MetaOptimize(q, torch.optim.SGD, eta=0.05)
    for grads in gradients(10, [(3,)]):
        give(p, [-g for g in grads])
        give(q, grads)
        up.step()
        down.step()
    assert up.step_sizes() == pytest.approx(down.step_sizes())


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
@pytest.mark.parametrize("base", [torch.optim.SGD, torch.optim.Adagrad])
def test_sparse_gradients_teach_as_dense_ones_do(base):
    seen = []
    for sparse in (True, False):
        torch.manual_seed(0)
        table = nn.Embedding(6, 3, sparse=sparse)
        optimizer = MetaOptimize(table.parameters(), base, alpha0=1e-2, eta=0.05)
        for rows in ([0, 1, 1], [1, 2, 1], [5, 0, 1], [0, 0, 0]):
            optimizer.zero_grad()
            (table(torch.tensor(rows)) ** 2).sum().backward()
            optimizer.step()
        seen.append((optimizer.step_sizes()["all"], table.weight.detach()))
    assert seen[0][0] == pytest.approx(seen[1][0])
    assert seen[0][0] != pytest.approx(1e-2, rel=1e-3)
    torch.testing.assert_close(seen[0][1], seen[1][1])


@pytest.mark.parametrize("name", BASES)
@pytest.mark.parametrize("how", ["saved", "pickle", "deepcopy"])
def test_it_continues_bit_for_bit(name, how):
    settings = {"blocks": "scalar", "eta": 0.01}
    params, first = wrapped(name, settings)
    run(first, params, grads_of(name, 4), is_sparse(name))
    if how in ("pickle", "deepcopy"):
        again = copy.deepcopy(first) if how == "deepcopy" else pickle.loads(pickle.dumps(first))
        others = held(again)
    else:
        others, again = wrapped(name, settings, seed=3)
        for p, q in zip(params, others, strict=True):
            q.data.copy_(p.data)
        saved = first.state_dict()
        if how == "saved":
            file = io.BytesIO()
            torch.save(saved, file)
            file.seek(0)
            saved = torch.load(file, weights_only=True)
        again.load_state_dict(saved)
    for seed in (5, 6):  # one, then the other: neither may move what the other holds
        run(first, params, grads_of(name, 2, seed), is_sparse(name))
        run(again, others, grads_of(name, 2, seed), is_sparse(name))
    assert first.step_sizes() == again.step_sizes()
    for p, q in zip(params, others, strict=True):
        assert torch.equal(p, q)


def test_what_did_not_change_since_it_was_built_is_in_no_checkpoint(monkeypatch):
    """A process's rank, say, which must not come from another process."""
    params, first = wrapped("Counting")
    run(first, params, grads_of("Counting", 2))
    monkeypatch.setattr(Counting, "process", 1)
    others, again = wrapped("Counting")
    again.load_state_dict(pickle.loads(pickle.dumps(first)).state_dict())
    run(again, others, grads_of("Counting", 1))
    assert Counting.seen[-1] == (1, 3)


@pytest.mark.parametrize("name", [*LEARNING, "Eager", "Counting"])
def test_a_block_may_be_added_and_learns(name):
    params, optimizer = wrapped(name, {"eta": 0.05})
    run(optimizer, params, grads_of(name, 2), is_sparse(name))
    new = parameters([(4, 3)], seed=9)
    optimizer.add_param_group({"params": new, "name": "new", "alpha0": 1e-2})
    both = [*params, *new]
    shapes = [p.shape for p in both]
    if name == "Eager":  # torch's add_param_group gives no state, with us as without
        with pytest.raises(KeyError, match="sum"):
            run(optimizer, both, gradients(1, shapes))
        return
    run(optimizer, both, gradients(6, shapes), is_sparse(name))
    assert optimizer.step_sizes()["new"] != pytest.approx(1e-2, rel=1e-6)


@pytest.mark.parametrize("name", ["Adagrad", "Eager", "AdamW", "split"])
def test_a_parameter_that_joins_a_block_later_is_moved(name):
    params, optimizer = wrapped(name, {"blocks": "scalar"})
    run(optimizer, params, grads_of(name, 2))
    new = parameters([(2, 3)], seed=9)
    before = new[0].detach().clone()
    optimizer.param_groups[0]["params"].append(new[0])
    both = [*params, *new]
    run(optimizer, both, gradients(3, [p.shape for p in both]))
    assert not torch.equal(before, new[0])
    assert optimizer.state[new[0]]["h"].any()
