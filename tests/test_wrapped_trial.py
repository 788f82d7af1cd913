"""A base is tried on copies before its step size is learned, which finds those without one."""

from __future__ import annotations

import pytest
import torch
from wrapped_parts import (
    TORCHS,
    Moves,
    gradients,
    make_base,
    parameters,
    run,
)

from clmeta import BadArgument, MetaOptimize


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
