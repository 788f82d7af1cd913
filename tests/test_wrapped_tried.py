"""Trying a base disturbs nothing; what cannot be one is refused, what cannot be tried believed."""

from __future__ import annotations

import functools
import itertools
import random
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook
from wrapped_parts import (
    LEARNING,
    OWN,
    TORCHS,
    Eager,
    Modes,
    Moves,
    Sharp,
    give,
    gradients,
    held,
    make_base,
    parameters,
    run,
)

from clmeta import BadArgument, MetaOptimize

SHAPES = [(4, 3), (4,)]


def draws():
    """One number from each of the generators that everything shares."""
    return random.random(), float(np.random.random()), float(torch.rand(()))  # noqa: NPY002


def seed():
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)


class Noisy(Moves):
    """Draws from every generator, and counts its steps for the whole class."""

    steps = 0

    def length(self, group, p):
        type(self).steps += 1
        return group["lr"] * (1 + sum(draws()))


@pytest.mark.parametrize("base", [Noisy, lambda groups: Noisy(groups), Sharp, Modes, Eager])
def test_trying_disturbs_nothing(base):
    params = parameters(SHAPES)
    give(params, next(iter(gradients(1, SHAPES))))
    calls = []
    for p in params:
        p.register_hook(calls.append)
        p.register_post_accumulate_grad_hook(calls.append)
    step_hook = register_optimizer_step_pre_hook(lambda *_: calls.append(0))
    before = [(p.detach().clone(), p.grad, p.grad.clone(), p._version) for p in params]

    seed()
    expected = draws()
    seed()
    try:
        optimizer = MetaOptimize(params, base)
    finally:
        step_hook.remove()
    assert draws() == expected
    assert calls == []
    for p, (w, grad, copied, version) in zip(params, before, strict=True):
        assert torch.equal(p, w) and p.grad is grad and torch.equal(grad, copied)
        assert p._version == version
    state = {key: dict(value) for key, value in optimizer.state.items() if key in set(params)}
    assert all("h" not in entries for entries in state.values())


def test_no_step_is_tried_where_nothing_is_learned():
    before = Noisy.steps
    MetaOptimize(parameters(SHAPES), Noisy, "none")
    assert Noisy.steps == before
    MetaOptimize(parameters(SHAPES), Noisy)
    assert Noisy.steps > before


@pytest.mark.parametrize("name", [*LEARNING, *OWN])
def test_building_says_nothing(name):
    """Warnings are errors here."""
    shapes = TORCHS[name].shapes if name in TORCHS else SHAPES
    MetaOptimize(parameters(shapes), OWN.get(name) or make_base(name))


def test_a_base_that_cannot_be_copied_is_believed_with_a_warning():
    net = nn.Linear(3, 2, dtype=torch.float64)

    class Holds(torch.optim.SGD):
        def __init__(self, params, lr=1e-3):
            super().__init__(params, lr=lr)
            self.net = net

    before = [p.detach().clone() for p in net.parameters()]
    with pytest.warns(UserWarning, match="base='Holds': whether .* holds a module, 'net'"):
        optimizer = MetaOptimize(net.parameters(), Holds, eta=0.05)
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), before, strict=True))
    run(optimizer, [*net.parameters()], gradients(5, [(2, 3), (2,)]))
    assert optimizer.step_sizes()["all"] != pytest.approx(1e-4, rel=1e-6)


def test_one_that_waits_for_its_first_movement_is_waited_for():
    class Accumulates(Moves):
        def length(self, group, p):
            return group["lr"] if self.t % 12 == 0 else 0.0

    class Never(Moves):
        def length(self, group, p):
            return 0.0

    MetaOptimize(parameters(SHAPES), Accumulates)
    with pytest.warns(UserWarning, match="base='Never': .*nothing moved in 32 steps"):
        MetaOptimize(parameters(SHAPES), Never)


def test_one_that_needs_half_precision_or_whole_shapes_is_tried_with_them():
    class Single(Moves):
        def length(self, group, p):
            assert p.dtype == torch.float32, "kernels for single precision only"
            return group["lr"]

    class Whole(Moves):
        def __init__(self, params, lr=1e-3):
            super().__init__(params, lr)
            self.buffers = [torch.zeros_like(p) for p in held(self)]

        def step(self, closure=None):
            for p, buffer in zip(held(self), self.buffers, strict=True):
                buffer.add_(p.grad)
                p.data.sub_(buffer, alpha=self.param_groups[0]["lr"])

    net = nn.Linear(30, 20)
    for base in (Single, Whole):
        MetaOptimize(net.parameters(), base)


def test_trying_stays_cheap_for_many_parameters():
    """Of alike parameters only a few are tried."""
    touched = itertools.count()

    class Counts(Moves):
        def length(self, group, p):
            next(touched)
            return group["lr"]

    params = parameters([(3, 2), (3,)] * 200)
    MetaOptimize(params, Counts, blocks="tensor")
    assert next(touched) < 500


@pytest.mark.parametrize(
    ("base", "message"),
    [
        (nn.Linear, "is the class Linear; pass a torch optimiser's class"),
        (functools.partial(torch.optim.AdamW, eps=-1.0), r"base='AdamW\(eps=-1\.0\)': Invalid eps"),
        (functools.partial(torch.optim.SGD, nesterov=True), r"base='SGD.*': Nesterov momentum"),
        (functools.partial(torch.optim.SGD, momentun=0.9), r"base='SGD.*': .*'momentun'"),
        (lambda groups: 1 / 0, "base='<lambda>': division by zero"),
        (lambda groups: None, "base='<lambda>': must return a torch"),
        (
            functools.partial(torch.optim.Adam, differentiable=True),
            r"base='Adam\(differentiable=True\)': .*pass differentiable=False",
        ),
        (
            functools.partial(torch.optim.Adam, weight_decay=0.1),
            r"base='Adam\(weight_decay=0\.1\)': .*pass weight_decay=0\.1 to MetaOptimize",
        ),
        (
            lambda groups: torch.optim.SGD(groups[0]["params"][:1], lr=1.0),
            "base='<lambda>': leaves out parameters of block 'all'",
        ),
        (
            lambda groups: torch.optim.SGD([*groups[0]["params"], nn.Parameter(torch.ones(1))]),
            "base='<lambda>': holds parameters that MetaOptimize was not given",
        ),
    ],
)
def test_what_cannot_be_a_base_is_refused_in_one_line(base, message):
    with pytest.raises(BadArgument, match=message) as caught:
        MetaOptimize(parameters(SHAPES), base)
    assert "\n" not in str(caught.value)


def test_a_state_with_the_traces_name_is_refused_before_it_is_written():
    class Late(Moves):
        def length(self, group, p):
            self.state[p]["h"] = torch.zeros_like(p)
            return group["lr"]

    class Early(Moves):
        def __init__(self, params, lr=1e-3):
            super().__init__(params, lr)
            for p in held(self):
                self.state[p]["h"] = torch.zeros_like(p)

    class Bare(Moves):
        def length(self, group, p):
            self.state[p] = 3
            return group["lr"]

    for base in (Late, Early):
        with pytest.raises(BadArgument, match=f"base='{base.__name__}': keeps a state named 'h'"):
            MetaOptimize(parameters(SHAPES), base)
    with pytest.raises(BadArgument, match="base='Bare': keeps a int per parameter"):
        MetaOptimize(parameters(SHAPES), Bare)


@pytest.mark.filterwarnings("error")
def test_warnings_of_the_base_in_trying_are_not_shown_twice():
    class Warns(Moves):
        def length(self, group, p):
            warnings.warn("slow", stacklevel=1)
            return group["lr"]

    (w,) = parameters([(3,)])
    optimizer = MetaOptimize([w], Warns)
    w.grad = torch.ones_like(w)
    with pytest.warns(UserWarning, match="slow"):
        optimizer.step()
