"""A base is tried on copies before its step size is learned: found out, and nothing disturbed."""

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
    Sharp,
    give,
    gradients,
    held,
    make_base,
    parameters,
    run,
)

from clmeta import BadArgument, MetaOptimize


class Moves(torch.optim.Optimizer):
    """Moves by a rule of its own, for the cases below."""

    def __init__(self, params, lr=1e-3):
        super().__init__(params, {"lr": lr})
        self.t = 0

    def length(self, group, p):
        return group["lr"]

    @torch.no_grad()
    def step(self, closure=None):
        self.t += 1
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.sub_(self.length(group, p) * p.grad)


class Relative(Moves):
    """As Adafactor with relative steps: the lr is not used."""

    def length(self, group, p):
        return 1e-2 / self.t**0.5


class Start(Moves):
    """The lr is only a start, from which each parameter goes its own way."""

    def length(self, group, p):
        state = self.state[p]
        state["size"] = state.get("size", group["lr"]) * 1.1
        return state["size"]


class Frozen(Moves):
    """Remembers the lr that it was built with."""

    def __init__(self, params, lr=1e-3):
        super().__init__(params, lr)
        self.lr = lr

    def length(self, group, p):
        return self.lr


class Root(Moves):
    """Noise-like: moves by the root of lr."""

    def length(self, group, p):
        return group["lr"] ** 0.5


class Capped(Moves):
    """Never longer than a bound."""

    def length(self, group, p):
        return min(group["lr"], 1e-2)


class Partly(Moves):
    """Goes by the lr for some parameters only."""

    def length(self, group, p):
        return group["lr"] if p.dim() > 1 else 1e-3


class Distance(Moves):
    """Distance over gradients: as long as the weights have gone so far."""

    def length(self, group, p):
        state = self.state[p]
        start = state.setdefault("start", p.detach().clone())
        state["sum"] = state.get("sum", 0.0) + float((p.grad**2).sum())
        gone = state["gone"] = max(state.get("gone", 1e-3), float((p - start).norm()))
        return group["lr"] * gone / state["sum"] ** 0.5


class Scheduled(Moves):
    """Shortens its own lr."""

    def length(self, group, p):
        group["lr"] *= 0.9
        return group["lr"]


NOT_PROPORTIONAL = {
    Relative: "moves 1 times as far",
    Start: "a later lr does not change its steps",
    Frozen: "moves 1 times as far",
    Root: r"moves 1\.41 times as far",
    Partly: "moves 1 times as far",
    Scheduled: "writes its own lr in a step",
}
SHAPES = [(4, 3), (4,)]


@pytest.mark.parametrize("base", NOT_PROPORTIONAL)
@pytest.mark.parametrize("alpha0", [1e-8, 1e-4, 1.0])
@pytest.mark.parametrize("factory", [False, True])
def test_a_base_that_does_not_move_by_its_lr_has_no_step_size_to_learn(base, alpha0, factory):
    params = parameters(SHAPES)
    made = (lambda groups: base(params)) if factory else base  # the lambda holds the weights
    name = "<lambda>" if factory else base.__name__
    start = [p.detach().clone() for p in params]
    with pytest.raises(BadArgument, match=f"base='{name}': .*{NOT_PROPORTIONAL[base]}") as caught:
        MetaOptimize(params, made, alpha0=alpha0)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(p, q) for p, q in zip(params, start, strict=True))
    if base is not Scheduled:
        MetaOptimize(params, made, "none", alpha0=alpha0)


@pytest.mark.parametrize(
    ("base", "fits", "does_not"),
    [(Capped, 1e-4, 1.0), (Distance, 1e-2, 10.0), (torch.optim.Adafactor, 1e-4, 1.0)],
)
def test_some_go_by_their_lr_only_where_it_is_small(base, fits, does_not):
    MetaOptimize(parameters(SHAPES), base, alpha0=fits)
    with pytest.raises(BadArgument, match=f"no step size to learn, as twice lr={does_not:g} moves"):
        MetaOptimize(parameters(SHAPES), base, alpha0=does_not)


@pytest.mark.parametrize("name", TORCHS)
@pytest.mark.parametrize("alpha0", [1e-4, 1e-2])
def test_torchs_own_are_told_apart(name, alpha0):
    kind = TORCHS[name]
    if kind.refused is None:
        MetaOptimize(parameters(kind.shapes), make_base(name), alpha0=alpha0)
        return
    with pytest.raises(BadArgument, match=f"base='{name}.*{kind.refused}"):
        MetaOptimize(parameters(kind.shapes), make_base(name), alpha0=alpha0)


@pytest.mark.parametrize("weights", [1.0, 0.0])
def test_weights_of_zero_hide_nothing(weights):
    class Trust(Moves):
        """Relative to the weights, as layerwise methods are."""

        def length(self, group, p):
            size = float(p.norm())
            return group["lr"] * (size if size > 0 else 1.0)

    params = parameters(SHAPES)
    for p in params:
        p.data.mul_(weights)
    MetaOptimize(params, Trust)


def test_a_schedule_of_the_bases_own_that_starts_later_is_refused_then():
    class Later(Scheduled):
        def length(self, group, p):
            return super().length(group, p) if self.t > 50 else group["lr"]

    params = parameters(SHAPES)
    optimizer = MetaOptimize(params, Later)
    with pytest.raises(BadArgument, match="base='Later': writes its own lr in a step"):
        run(optimizer, params, gradients(60, SHAPES))


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
