"""The C programs made from rules' formulas do what the rules do, or are not used."""

from __future__ import annotations

import copy
import itertools
import logging
from dataclasses import dataclass, field
from typing import ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from optimizer_parts import NAMES, Changing, feed, gradients, needs_compiler, params_of, run
from torch import nn

from clmeta import BadArgument, MetaOptimize
from clmeta.native import cc as _cc
from clmeta.native import table as _table
from clmeta.rules import Rule


def pair(*rules, first="native", dtype=torch.float64, shapes=None, **options):
    """(weights, optimiser) by C programs, and by torch's operations, otherwise alike."""
    made = []
    fine = options.get("blocks") in ("node", "weight")
    for engine in (first, "masked" if fine else "eager"):
        params = params_of(dtype=dtype, **({"shapes": shapes} if shapes else {}))
        named = params if shapes else list(zip(NAMES, params, strict=True))
        made.append((params, MetaOptimize(named, *rules, engine=engine, **options)))
    return made


def assert_alike(made, rtol=1e-12):
    (one, mine), (other, theirs) = made
    for a, b in zip([*one, mine.alpha], [*other, theirs.alpha], strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=rtol * 1e-2)
    for p, q in zip(one, other, strict=True):
        assert mine.state[p].keys() == theirs.state[q].keys()
        for key, value in mine.state[p].items():
            expected = theirs.state[q][key]
            if key == "step":
                assert float(value) == float(expected)
            else:
                torch.testing.assert_close(value, expected, rtol=rtol, atol=rtol * 1e-2)


@needs_compiler
@settings(max_examples=25, deadline=None)
@given(
    shapes=st.lists(st.lists(st.integers(1, 6), max_size=4).map(tuple), min_size=1, max_size=4),
    blocks=st.sampled_from(["node", "weight"]),
    piece=st.integers(1, 50),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_any_shape_and_cut_gives_the_same_step_sizes_per_unit(shapes, blocks, piece, dtype):
    made = pair(dtype=dtype, shapes=shapes, blocks=blocks, alpha0=1e-2, eta=1e-2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_table, "PIECE", piece)
        for params, optimizer in made:
            run(params, optimizer, gradients(5, shapes=shapes))
    assert_alike(made, rtol=1e-11 if dtype == torch.float64 else 1e-4)


@needs_compiler
@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 300), min_size=1, max_size=5),
    piece=st.integers(1, 200),
    threads=st.integers(1, 3),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_any_cut_into_pieces_and_threads_gives_the_same(sizes, piece, threads, dtype):
    shapes = [(size,) for size in sizes]
    made = pair(dtype=dtype, shapes=shapes, alpha0=1e-2, eta=1e-2)
    before = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_table, "PIECE", piece)
        patch.setattr(_table, "SHARE", 1)
        torch.set_num_threads(threads)
        try:
            for params, optimizer in made:
                run(params, optimizer, gradients(5, shapes=shapes))
        finally:
            torch.set_num_threads(before)
    assert_alike(made, rtol=1e-11 if dtype == torch.float64 else 1e-4)


@dataclass(frozen=True)
class Everything(Rule):
    """Every function that a formula may use, at least once."""

    decay: float = 0.7
    slots: ClassVar[tuple[str, ...]] = ("m", "register")

    def update(self, g, state, t):
        m = torch.lerp(state["m"], g, 1 - self.decay)
        v = torch.addcmul(state["register"], g, g, value=0.5)
        x = torch.where(g > 0, torch.maximum(m, -g), torch.minimum(abs(m), g + t))
        x = x + torch.sqrt(v + 1) - torch.exp(-v) + torch.tanh(m).square() - 2 / (1 + v)
        x = x + torch.log(v + 2) * torch.expm1(-v) + torch.log1p(v).reciprocal() * self.decay**t
        x = torch.add(x, m, alpha=0.3) - torch.sub(m, v, alpha=2) + torch.addcdiv(m, g, v + 1)
        x = x + (v + 1) ** 0.5 + m**2 + (v + 1) ** -1.5 + torch.rsqrt(v + 3) - g.sign()
        return x.clamp(-3, max=2.5) + m.abs().neg().clamp(min=-1), {"m": m, "register": v}


@needs_compiler
def test_a_users_rule_of_elementwise_functions_is_a_formula():
    made = pair(Everything(), Everything(0.2), "layer", alpha0=1e-2, eta=1e-2)
    for params, optimizer in made:
        run(params, optimizer, gradients(12))
    assert_alike(made, rtol=1e-10)


class Normalised(Rule):
    """Not elementwise: a sum over the tensor."""

    def update(self, g, state, t):
        return g / g.norm(), state


class Branching(Rule):
    """Another formula from the third step on."""

    def update(self, g, state, t):
        return (g if t < 3 else -g), state


@dataclass(frozen=True)
class Learned(Rule):
    """Has a tensor for an option."""

    rho: torch.Tensor = field(default_factory=lambda: torch.tensor(0.9, dtype=torch.float64))
    slots: ClassVar[tuple[str, ...]] = ("m",)

    def update(self, g, state, t):
        m = self.rho * state["m"] + g
        return m, {"m": m}


@pytest.mark.parametrize("rule", [Normalised, Branching, Changing, Learned])
def test_a_rule_that_is_no_formula_goes_by_torch(rule):
    options = {"blocks": "layer", "alpha0": 1e-2}
    made = [pair(rule(), "adam", first="auto", **options)[which] for which in (0, 1)]
    for params, optimizer in made:
        run(params, optimizer, gradients(6))
    assert_alike(made, rtol=0)
    with pytest.raises(BadArgument, match=r"engine='native': .*; 'auto' takes what there is"):
        pair(rule(), "adam", **options)


def test_without_a_compiler_it_goes_by_torch(monkeypatch):
    monkeypatch.setenv("CLMETA_NATIVE", "0")
    _cc.load.cache_clear()
    made = pair(first="auto", blocks="layer")
    for params, optimizer in made:
        run(params, optimizer, gradients(6))
    assert_alike(made, rtol=0)
    with pytest.raises(BadArgument, match=r"engine='native': no C compiler; 'auto' takes"):
        pair(blocks="layer")
    _cc.load.cache_clear()


@needs_compiler
def test_parameters_without_gradients_stay_and_others_move_alike():
    made = pair(blocks="layer", alpha0=1e-2, eta=1e-2)
    for params, optimizer in made:
        for k, grads in enumerate(gradients(12)):
            feed(params, grads)
            if k % 3:
                params[1].grad = params[2].grad = params[3].grad = None
            optimizer.step()
    assert_alike(made)


@needs_compiler
def test_other_layouts_move_alike():
    def made(engine):
        torch.manual_seed(0)
        layer = nn.Conv2d(3, 5, 3).to(memory_format=torch.channels_last).double()
        return layer, MetaOptimize(layer.parameters(), alpha0=1e-2, eta=1e-2, engine=engine)

    pairs = [made("native"), made("eager")]
    for layer, optimizer in pairs:
        for k in range(6):
            torch.manual_seed(k)
            for p in layer.parameters():
                p.grad = torch.randn_like(p)
            if k == 4:  # a gradient laid out otherwise than its weights
                layer.weight.grad = layer.weight.grad.contiguous()
            optimizer.step()
    assert_alike([(list(layer.parameters()), o) for layer, o in pairs])


@needs_compiler
@pytest.mark.parametrize("blocks", ["scalar", "node", "weight"])
def test_a_gradient_that_is_not_finite_moves_nothing(blocks):
    spots = itertools.product((0, 40, 99), (float("nan"), float("inf"), -float("inf")))
    for (at, value), meta in itertools.product(spots, ("adam", "none")):
        params = params_of(shapes=[(100,)])
        optimizer = MetaOptimize(params, "adamw", meta, blocks, nonfinite="skip", engine="native")
        run(params, optimizer, gradients(2, shapes=[(100,)]))
        before = [params[0].detach().clone(), *copy.deepcopy(optimizer.state[params[0]]).values()]
        params[0].grad[at] = value
        optimizer.step()
        assert optimizer.withheld == 1
        after = [params[0].detach(), *optimizer.state[params[0]].values()]
        for old, new in zip(before, after, strict=True):
            assert old == new if isinstance(old, int) else torch.equal(old, new)


@pytest.mark.parametrize("command", ["false", "no-such-compiler"])
def test_a_compiler_that_does_not_work_is_an_error_that_steps_catch(tmp_path, monkeypatch, command):
    monkeypatch.setenv("CLMETA_CACHE", str(tmp_path))
    monkeypatch.setenv("CC", command)
    _cc.load.cache_clear()
    with pytest.raises(_cc.CannotBuild):
        _cc.load("double answer(void) { return 42; }")
    made = pair(first="auto", blocks="layer")
    for params, optimizer in made:
        run(params, optimizer, gradients(2))
    assert_alike(made, rtol=0)
    with pytest.raises(BadArgument, match=r"engine='native': .*compiler"):
        pair(blocks="layer")
    _cc.load.cache_clear()


def test_why_there_is_no_program_is_logged_once(caplog):
    @dataclass(frozen=True)
    class Sorted(Rule):
        def update(self, g, state, t):
            return g.flatten().sort()[0].view_as(g), state

    with caplog.at_level(logging.INFO, "clmeta"):
        for _ in range(2):
            params, optimizer = pair(Sorted(), first="auto", blocks="layer")[0]
            run(params, optimizer, gradients(2))
    said = [r.message for r in caplog.records if "Sorted" in r.message]
    assert len(said) == 1
    assert "uses .sort" in said[0] or "uses .flatten" in said[0]
