"""Steps take gradients of any precision, may be compiled, and say what has no second derivative."""

from __future__ import annotations

import copy
import functools
import math

import pytest
import torch
from contract_parts import KINDS, assert_same, everything, make, net
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from clmeta import BadArgument, GeneralMetaOptimize, MetaOptimize

NO_DECAY = {torch.optim.AdamW: {"weight_decay": 0.0}}
FREE = [kind for kind in KINDS if kind not in ("exact", "diagonal")]
every_kind = pytest.mark.parametrize("kind", FREE)
every_rule = pytest.mark.parametrize("kind", [kind for kind in FREE if "wrapped" not in kind])
every_half = pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=str)


# ---- gradients of another dtype than the weight ------------------------------------------------


def gradients(model, dtype, steps=4):
    make_noise = torch.Generator().manual_seed(3)
    for _ in range(steps):
        yield [torch.randn(p.shape, generator=make_noise).to(dtype) for p in model.parameters()]


def feed(model, grads):
    for p, g in zip(model.parameters(), grads, strict=True):
        p.grad_dtype = g.dtype
        p.grad = g


@every_rule
@every_half
def test_full_weights_take_gradients_of_half_precision(kind, half):
    """A gradient counts as its own numbers, in the precision of the state."""
    model, optimizer = make(kind)
    other, reference = make(kind)
    for grads in gradients(model, half):
        feed(model, grads)
        feed(other, [g.float() for g in grads])
        optimizer.step()
        reference.step()
    for a, b in zip(everything(model, optimizer), everything(other, reference), strict=True):
        torch.testing.assert_close(a, b)
    assert optimizer.withheld == 0
    assert all(p.grad.dtype == half for p in model.parameters())


@every_rule
@every_half
def test_weights_of_half_precision_take_full_gradients(kind, half):
    model, optimizer = make(kind, model=net().to(half))
    other, reference = make(kind, model=net().to(half))
    for grads in gradients(model, half):
        feed(model, [g.float() for g in grads])
        feed(other, grads)
        optimizer.step()
        reference.step()
    assert_same(everything(model, optimizer), everything(other, reference))
    assert all(p.dtype == half for p in model.parameters())


BASES = {
    "sgd": torch.optim.SGD,
    "sgdm": functools.partial(torch.optim.SGD, momentum=0.9),
    "adamw": torch.optim.AdamW,
    "loops": functools.partial(torch.optim.RMSprop, foreach=False),
}


@every_half
@pytest.mark.parametrize("base", BASES.values(), ids=BASES)
@pytest.mark.parametrize("meta", ["none", "adam"])
def test_a_wrapped_optimiser_takes_the_gradients_that_it_takes_alone(base, meta, half):
    """Some of torch's mix precisions and some don't; which is theirs to say."""
    for weights, grads in ((torch.float32, half), (half, torch.float32)):
        alone = net().to(weights)
        theirs = base(alone.parameters(), lr=1e-2, **NO_DECAY.get(base, {}))
        model = net().to(weights)
        ours = MetaOptimize(model.named_parameters(), base, meta, alpha0=1e-2, eta=0.0)
        said = None
        for each in gradients(model, grads):
            feed(alone, each)
            feed(model, each)
            try:
                theirs.step()
            except RuntimeError as error:
                said = error
            if said is not None:
                with pytest.raises((RuntimeError, BadArgument)):
                    ours.step()
                break
            ours.step()
        else:
            for p, q in zip(alone.parameters(), model.parameters(), strict=True):
                torch.testing.assert_close(p, q, rtol=2e-2, atol=2e-3)


def test_double_weights_take_single_gradients():
    model, optimizer = make("scalar", model=net().double())
    for grads in gradients(model, torch.float32):
        feed(model, grads)
        optimizer.step()
    assert optimizer.alpha.dtype == torch.float64
    assert optimizer.step_sizes()["all"] != 1e-2


@every_kind
def test_a_gradient_of_half_precision_that_is_not_finite_is_withheld(kind):
    model, optimizer = make(kind, nonfinite="skip")
    before = [p.detach().clone() for p in model.parameters()]
    feed(model, [torch.full(p.shape, math.inf, dtype=torch.bfloat16) for p in model.parameters()])
    optimizer.step()
    assert optimizer.withheld == 1
    assert_same(before, [*model.parameters()])


# ---- torch.compile of a step -------------------------------------------------------------------


@every_kind
def test_a_compiled_step_makes_the_same_steps(kind):
    torch.compiler.reset()
    model, optimizer = make(kind)
    other, reference = make(kind)
    step = torch.compile(optimizer.step, backend="eager")
    for grads in gradients(model, torch.float32):
        feed(model, grads)
        feed(other, grads)
        step()
        reference.step()
    assert_same(everything(model, optimizer), everything(other, reference))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_a_compiled_loop_makes_the_same_steps():
    torch.compiler.reset()
    model, optimizer = make("layer")
    other, reference = make("layer")

    def train(network, opt, x):
        opt.zero_grad()
        loss = network(x).square().mean()
        loss.backward()
        opt.step()
        return loss.detach()

    compiled = torch.compile(train, backend="eager")
    for seed in range(3):
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(seed))
        assert torch.equal(compiled(model, optimizer, x), train(other, reference, x))
    assert_same(everything(model, optimizer), everything(other, reference))


# ---- second derivatives ------------------------------------------------------------------------


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.project = nn.Linear(8, 24)

    def forward(self, x):
        q, k, v = self.project(x).view(2, 5, 3, 2, 4).permute(2, 0, 3, 1, 4)
        return scaled_dot_product_attention(q, k, v)


def gradients_with_graph(model, x):
    params = [*model.parameters()]
    grads = torch.autograd.grad(model(x).square().sum(), params, create_graph=True)
    for p, g in zip(params, grads, strict=True):
        p.grad = g


@pytest.mark.parametrize("hessian", ["exact", "diagonal"])
def test_attention_without_second_derivatives_is_refused_with_the_mend(hessian):
    model = Attention()
    optimizer = MetaOptimize(model.named_parameters(), "sgdm", hessian=hessian)
    before = copy.deepcopy(everything(model, optimizer)[:2])
    gradients_with_graph(model, torch.randn(2, 5, 8))
    with pytest.raises(BadArgument, match=f"hessian='{hessian}'.*SDPBackend.MATH.*hessian='free'"):
        optimizer.step()
    assert_same(before, everything(model, optimizer)[:2])
    with sdpa_kernel(SDPBackend.MATH):
        gradients_with_graph(model, torch.randn(2, 5, 8))
    optimizer.step()
    assert not torch.equal(before[0], model.project.weight)


def test_another_error_of_a_second_derivative_is_shown_as_it_is():
    w = nn.Parameter(torch.ones(2))
    optimizer = MetaOptimize([w], "sgdm", hessian="exact")
    loss = (w * w).sum()
    (w.grad,) = torch.autograd.grad(loss, [w], create_graph=True)
    torch.autograd.grad(w.grad.sum(), [w])  # frees the graph
    with pytest.raises(RuntimeError, match="second time"):
        optimizer.step()


@pytest.mark.parametrize("hessian", ["exact", "diagonal"])
def test_the_general_algorithm_takes_attention_as_it_is(hessian):
    model = Attention()
    params = {name: p.detach() for name, p in model.named_parameters()}

    def loss(params, x):
        return torch.func.functional_call(model, params, (x,)).square().sum()

    optimizer = GeneralMetaOptimize(loss, params, "sgd", hessian=hessian, alpha0=1e-3)
    for seed in range(2):
        optimizer.step(torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(seed)))
    assert all(torch.isfinite(x).all() for x in optimizer.params.values())
