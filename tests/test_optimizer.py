"""MetaOptimize against its twin, torch's own optimisers and the authors' recorded runs."""

from __future__ import annotations

import functools
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import cross_entropy
from twin import Twin

from clmeta import MetaOptimize
from clmeta._masked import MaskedPath
from clmeta.rules import SGD, Adam, Lion, RMSprop, Rule, SGDm

BASES = [
    SGD(),
    SGDm(),
    SGDm(accumulate=True),
    SGDm(stale=True),
    RMSprop(),
    Adam(),
    Adam(accumulate=True),
    Lion(),
]
METAS = [None, SGD(), SGDm(), RMSprop(), Adam(), Adam(accumulate=True), Lion()]
SHAPES = [(4, 3), (4,), (2, 4), (2,)]
NAMES = ["one.weight", "one.bias", "two.weight", "two.bias"]
SPECS = {
    "scalar": [[0, 1, 2, 3]],
    "layer": [[0, 1], [2, 3]],
    "tensor": [[0], [1], [2], [3]],
}


def params_of(seed=0, dtype=torch.float64, shapes=SHAPES):
    make = torch.Generator().manual_seed(seed)
    return [
        nn.Parameter(torch.randn(s, generator=make, dtype=torch.float64).to(dtype)) for s in shapes
    ]


def gradients(steps, seed=1, dtype=torch.float64, shapes=SHAPES):
    make = torch.Generator().manual_seed(seed)
    drift = [torch.randn(s, generator=make, dtype=torch.float64) for s in shapes]
    for _ in range(steps):
        yield [
            (d + torch.randn(s, generator=make, dtype=torch.float64)).to(dtype)
            for s, d in zip(shapes, drift, strict=True)
        ]


def feed(params, grads):
    for p, g in zip(params, grads, strict=True):
        p.grad = g.to(p.dtype, copy=True)


def masked(optimizer):
    """The accelerators' path, on the CPU."""
    optimizer._path = MaskedPath(optimizer, optimizer._path.rule, optimizer.granularity)
    return optimizer


@pytest.mark.parametrize("path", ["lists", "masked"])
@pytest.mark.parametrize("meta", METAS, ids=str)
@pytest.mark.parametrize("base", BASES, ids=str)
def test_every_rule_pair_equals_the_twin(base, meta, path):
    params = params_of()
    twin = Twin([p.detach() for p in params], SPECS["layer"], base, meta, 1e-2, 1e-2, 0.9, 0.1)
    optimizer = MetaOptimize(
        zip(NAMES, params, strict=True),
        base,
        meta or "none",
        "layer",
        alpha0=1e-2,
        eta=1e-2,
        gamma=0.9,
        weight_decay=0.1,
    )
    if path == "masked":
        masked(optimizer)
    for grads in gradients(25):
        feed(params, grads)
        optimizer.step()
        twin.step(grads)
    for p, w in zip(params, twin.w, strict=True):
        torch.testing.assert_close(p.detach(), w, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(optimizer.alpha, twin.alpha, rtol=1e-9, atol=0)


@settings(max_examples=25, deadline=None)
@given(
    spec=st.sampled_from(sorted(SPECS)),
    alpha0=st.floats(1e-6, 1e-1),
    eta=st.floats(0, 0.1),
    gamma=st.floats(0, 1),
    kappa=st.floats(0, 1),
    batch=st.integers(1, 20),
)
def test_hyperparameters_and_batches_do_not_break_the_equations(
    spec, alpha0, eta, gamma, kappa, batch
):
    params = params_of()
    twin = Twin(
        [p.detach() for p in params], SPECS[spec], Adam(), Adam(), alpha0, eta, gamma, kappa
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("clmeta._lists.BATCH", batch)
        optimizer = MetaOptimize(
            list(zip(NAMES, params, strict=True)),
            blocks=spec,
            alpha0=alpha0,
            eta=eta,
            gamma=gamma,
            weight_decay=kappa,
        )
        for grads in gradients(8):
            feed(params, grads)
            optimizer.step()
            twin.step(grads)
    for p, w in zip(params, twin.w, strict=True):
        torch.testing.assert_close(p.detach(), w, rtol=1e-8, atol=1e-12)
    torch.testing.assert_close(optimizer.alpha, twin.alpha, rtol=1e-8, atol=0)


@pytest.mark.parametrize(
    ("base", "theirs"),
    [
        (SGD(), torch.optim.SGD),
        (
            SGDm(rho=0.9, accumulate=True),
            functools.partial(torch.optim.SGD, momentum=0.9),
        ),
        (Adam(eps=0.0), functools.partial(torch.optim.AdamW, weight_decay=0.0, eps=0.0)),
        (RMSprop(eps=0.0), functools.partial(torch.optim.Adam, betas=(0.0, 0.999), eps=0.0)),
    ],
    ids=str,
)
def test_a_fixed_step_size_gives_torchs_own_optimiser(base, theirs):
    mine, other = params_of(), params_of()
    ours = MetaOptimize(mine, base, "none", alpha0=1e-2)
    reference = theirs(other, lr=1e-2)
    for grads in gradients(20):
        feed(mine, grads)
        feed(other, grads)
        ours.step()
        reference.step()
    for p, q in zip(mine, other, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-12)
    assert ours.step_sizes() == pytest.approx({"all": 1e-2})


def test_fixed_step_size_with_decay_gives_torchs_adamw():
    mine, other = params_of(), params_of()
    ours = MetaOptimize(mine, Adam(eps=0.0), "none", alpha0=1e-2, weight_decay=0.1)
    reference = torch.optim.AdamW(other, lr=1e-2, weight_decay=0.1, eps=0.0)
    for grads in gradients(20):
        feed(mine, grads)
        feed(other, grads)
        ours.step()
        reference.step()
    for p, q in zip(mine, other, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("options", [{}, {"fused": True}, {"foreach": True}], ids=str)
@pytest.mark.parametrize("kappa", [0.0, 0.1])
def test_wrapped_torch_adamw_equals_rule_adamw(options, kappa):
    mine, other = params_of(), params_of()
    settings = {"meta": "adam", "blocks": "tensor", "alpha0": 1e-2, "weight_decay": kappa}
    rule = MetaOptimize(mine, Adam(eps=0.0), **settings)
    wrapped = MetaOptimize(
        other, functools.partial(torch.optim.AdamW, eps=0.0, **options), **settings
    )
    for grads in gradients(30):
        feed(mine, grads)
        feed(other, grads)
        rule.step()
        wrapped.step()
    for p, q in zip(mine, other, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(rule.alpha, wrapped.alpha, rtol=1e-8, atol=0)


class PaperCNN(nn.Module):
    """The network of the recorded runs."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.classifier = nn.Sequential(
            nn.Flatten(), nn.Linear(2048, 128), nn.ReLU(), nn.Linear(128, 10)
        )

    def forward(self, x):
        return self.classifier(self.features(x))


AUTHORS = {
    "adamw_adam_scalar": (Adam(accumulate=True), Adam(accumulate=True), "scalar", 1e-4, 0.1, 1e-3),
    "adamw_adam_2block": (Adam(accumulate=True), Adam(accumulate=True), "head", 1e-4, 0.1, 1e-3),
    "rmsprop_rmsprop_2block": (RMSprop(), RMSprop(), "head", 1e-3, 0.0, 1e-2),
    "lion_lion_2block": (Lion(), Lion(), "head", 1e-4, 0.01, 1e-3),
}


@pytest.mark.parametrize("case", sorted(AUTHORS))
@pytest.mark.parametrize("path", ["lists", "masked"])
def test_trajectories_equal_the_authors_optimiser(shared, case, path):
    recorded = np.load(shared / "data" / "parity_400_steps.npz")
    base, meta, blocks, alpha0, kappa, eta = AUTHORS[case]
    steps = 400 if path == "lists" else 50
    net = PaperCNN()
    net.load_state_dict({n: torch.from_numpy(recorded[f"w0/{n}"]) for n in net.state_dict()})
    optimizer = MetaOptimize(
        net.named_parameters(),
        base,
        meta,
        blocks,
        alpha0=alpha0,
        eta=eta,
        gamma=0.999,
        weight_decay=kappa,
    )
    if path == "masked":
        masked(optimizer)
    x = torch.from_numpy(recorded["x"]).float() / 255
    y = torch.from_numpy(recorded["y"]).long()
    alphas = []
    for i in range(steps):
        alphas.append(optimizer.alpha.tolist())
        optimizer.zero_grad()
        cross_entropy(net(x[i : i + 1]), y[i : i + 1]).backward()
        optimizer.step()
    error = np.abs(np.array(alphas) / recorded[f"{case}/alpha"][:steps] - 1)
    assert error[:50].max() < 1e-4
    assert error[-1].max() < 0.1


def test_a_step_size_that_is_too_small_grows_by_itself():
    target = torch.tensor([1.0, -2.0, 3.0])
    w = nn.Parameter(torch.zeros(3))
    optimizer = MetaOptimize([w], "sgd", "adam", alpha0=1e-4, eta=1e-2)
    for _ in range(500):
        optimizer.zero_grad()
        ((w - target) ** 2).sum().backward()
        optimizer.step()
    assert optimizer.step_sizes()["all"] > 10 * 1e-4
    assert torch.allclose(w, target, atol=0.1)


def test_a_users_own_rule_is_one_class():
    class SignSGD(Rule):
        def update(self, g, state, t):
            return torch.sign(g), state

    w = nn.Parameter(torch.tensor([1.0, -1.0]))
    optimizer = MetaOptimize([w], SignSGD(), "sgd", alpha0=0.5, eta=0.0)
    w.grad = torch.tensor([2.0, -3.0])
    optimizer.step()
    assert w.tolist() == [0.5, -0.5]


def test_a_users_rule_may_return_its_old_state_as_direction():
    class Stale(Rule):
        slots = ("m",)

        def update(self, g, state, t):
            return state["m"], {"m": g}

    w = nn.Parameter(torch.zeros(1))
    optimizer = MetaOptimize([w], Stale(), "none", alpha0=1.0)
    for g in (1.0, 2.0, 4.0):
        w.grad = torch.tensor([g])
        optimizer.step()
    assert w.item() == -(0.0 + 1.0 + 2.0)


@pytest.mark.parametrize("blocks", ["node", "weight"])
def test_fine_step_sizes_equal_the_twin_with_a_block_each(blocks):
    params = [nn.Parameter(torch.randn(2, 3, dtype=torch.float64))]
    cells = [[(0, 0), (0, 1), (0, 2)], [(1, 0), (1, 1), (1, 2)]]
    if blocks == "weight":
        cells = [[cell] for cell in itertools.product(range(2), range(3))]
    start = [params[0].detach()[i, j].clone() for cell in cells for i, j in cell]
    sizes = [len(cell) for cell in cells]
    ends = list(itertools.accumulate(sizes))
    index = [list(range(end - size, end)) for size, end in zip(sizes, ends, strict=True)]
    twin = Twin(start, index, Adam(), Adam(), 1e-2, 1e-2, 0.9, 0.1)
    optimizer = MetaOptimize(
        params, blocks=blocks, alpha0=1e-2, eta=1e-2, gamma=0.9, weight_decay=0.1
    )
    for (g,) in gradients(20, shapes=[(2, 3)]):
        feed(params, [g])
        optimizer.step()
        twin.step([g[i, j] for cell in cells for i, j in cell])
    got = [params[0].detach()[i, j] for cell in cells for i, j in cell]
    torch.testing.assert_close(torch.stack(got), torch.stack(twin.w), rtol=1e-9, atol=1e-12)
    beta = optimizer.state[params[0]]["beta"].flatten()
    torch.testing.assert_close(beta.exp(), twin.alpha, rtol=1e-9, atol=0)
    mean = torch.stack(twin.beta).mean().exp().item()
    assert optimizer.step_sizes()["param0"] == pytest.approx(mean)
