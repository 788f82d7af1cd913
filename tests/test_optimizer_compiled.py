"""MetaOptimize(engine="compiled"): the same step as one compiled program."""

from __future__ import annotations

import copy
import io
from dataclasses import dataclass, field

import pytest
import torch
from optimizer_parts import Changing

from clmeta import BadArgument, MetaOptimize
from clmeta.engines import compiled
from clmeta.engines.fuse import CannotCompile, Fused
from clmeta.rules import Rule

BASES = ("sgd", "sgdm", "rmsprop", "adamw", "lion")


def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))


def learn(model, optimizer, steps=25, start=0):
    """Trains on a fixed stream; step sizes after every step."""
    seen = []
    for step in range(start, start + steps):
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(8, 6, generator=generator)
        y = torch.randint(0, 3, (8,), generator=generator)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        seen.append(optimizer.alpha.clone())
    return torch.stack(seen)


def pair(**options):
    """The same optimiser uncompiled and compiled, over equal networks."""
    models = [network(), network()]
    optimizers = [
        MetaOptimize(m.named_parameters(), engine=engine, **options)
        for m, engine in zip(models, ("auto", "compiled"), strict=True)
    ]
    return models, optimizers


def assert_equal_learning(models, optimizers, **how):
    alphas = [learn(m, o, **how) for m, o in zip(models, optimizers, strict=True)]
    torch.testing.assert_close(*alphas, rtol=1e-5, atol=0)
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.fixture
def programs(monkeypatch):
    """The programs that were compiled."""
    made = []

    def counted(*args):
        made.append(Fused(*args))
        return made[-1]

    monkeypatch.setattr(compiled, "Fused", counted)
    return made


@pytest.mark.slow
@pytest.mark.compiled
@pytest.mark.parametrize("base", BASES)
def test_equals_the_uncompiled_step(base):
    meta = "none" if base == "sgdm" else "lion" if base == "lion" else "adam"
    models, optimizers = pair(
        base=base, meta=meta, blocks="layer", alpha0=1e-3, eta=1e-2, gamma=0.99, weight_decay=0.1
    )
    assert_equal_learning(models, optimizers)


def test_nothing_is_compiled_again_as_numbers_change(programs):
    models, optimizers = pair(alpha0=1e-3, eta=1e-2, blocks="layer", alpha_max=2e-3)
    assert_equal_learning(models, optimizers)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group.update(eta=0.05, gamma=0.5, weight_decay=0.3)
    assert_equal_learning(models, optimizers, start=25)
    optimizers[1].load_state_dict(copy.deepcopy(optimizers[1].state_dict()))
    for p in models[1].parameters():
        p.data = p.data.clone()
    assert_equal_learning(models, optimizers, start=50)
    assert len(programs) == 1


@pytest.mark.slow
@pytest.mark.compiled
def test_a_parameter_without_gradient_stays():
    models, optimizers = pair(alpha0=1e-3, blocks="layer")
    for model in models:
        model[0].requires_grad_(False)
    assert_equal_learning(models, optimizers)
    assert optimizers[1].step_sizes()["0"] == pytest.approx(1e-3)


@pytest.mark.slow
@pytest.mark.compiled
def test_a_non_finite_gradient_reaches_nothing():
    models, optimizers = pair(alpha0=1e-3, nonfinite="skip", blocks="layer")
    learn(models[1], optimizers[1], 3)
    before = copy.deepcopy([p.detach() for p in models[1].parameters()])
    alpha = optimizers[1].alpha.clone()
    for p in models[1].parameters():
        p.grad = torch.full_like(p, float("nan"))
    optimizers[1].step()
    assert optimizers[1].withheld == 1
    assert torch.equal(optimizers[1].alpha, alpha)
    for p, old in zip(models[1].parameters(), before, strict=True):
        assert torch.equal(p, old)


@pytest.mark.slow
@pytest.mark.compiled
def test_saves_and_loads_across_compiled_and_uncompiled():
    models, optimizers = pair(alpha0=1e-3, eta=1e-2, blocks="layer")
    learn(models[1], optimizers[1], 10)
    file = io.BytesIO()
    torch.save(optimizers[1].state_dict(), file)
    file.seek(0)
    models[0].load_state_dict(models[1].state_dict())
    optimizers[0].load_state_dict(torch.load(file, weights_only=True))
    assert_equal_learning(models, optimizers, start=10)


@pytest.mark.slow
@pytest.mark.compiled
@pytest.mark.parametrize("blocks", ["node", "weight"])
def test_finer_blocks_are_compiled_too(blocks, programs):
    models, optimizers = pair(alpha0=1e-3, eta=1e-2, blocks=blocks)
    assert_equal_learning(models, optimizers)
    assert len(programs) == 1


class Centred(Rule):
    """No formula of one number: it looks at a tensor's mean."""

    def update(self, g, state, t):
        return g - g.mean(), state


@pytest.mark.slow
@pytest.mark.compiled
@pytest.mark.parametrize("level", ["base", "meta"])
def test_a_rule_that_is_no_formula_is_compiled_too(level, programs):
    models, optimizers = pair(**{level: Centred()}, blocks="layer", alpha0=1e-3, eta=1e-2)
    assert_equal_learning(models, optimizers)
    assert len(programs) == 1


@pytest.fixture
def no_compiler(monkeypatch):
    """A machine whose compiler does not work."""

    def broken(*args):
        raise CannotCompile("no compiler here")

    monkeypatch.setattr(compiled, "Fused", broken)


def test_the_older_name_of_the_choice_still_works(no_compiler):
    for chosen, works in ((True, False), (False, True)):
        model = network()
        with pytest.warns(DeprecationWarning, match="compile is deprecated: pass engine='compi"):
            optimizer = MetaOptimize(model.parameters(), compile=chosen)
        if works:
            learn(model, optimizer, 1)
        else:
            with pytest.raises(BadArgument, match=r"engine='compiled': .*no compiler here"):
                learn(model, optimizer, 1)


def test_without_a_compiler_it_says_why_and_changes_nothing(no_compiler):
    models, optimizers = pair(alpha0=1e-3, eta=1e-2, blocks="layer")
    before = [p.detach().clone() for p in models[1].parameters()]
    with pytest.raises(BadArgument, match=r"engine='compiled': .*no compiler here.*'auto'"):
        learn(models[1], optimizers[1], 1)
    for p, old in zip(models[1].parameters(), before, strict=True):
        assert torch.equal(p, old)


@dataclass(frozen=True)
class Listed(Rule):
    """A frozen rule whose option can change all the same."""

    scale: list = field(default_factory=lambda: [1.0])

    def update(self, g, state, t):
        return g * self.scale[0], state


@pytest.mark.parametrize("rule", [Changing, Listed])
@pytest.mark.parametrize("level", ["base", "meta"])
def test_a_rule_that_can_change_is_not_compiled_once_for_all(rule, level):
    model = network()
    optimizer = MetaOptimize(model.parameters(), **{level: rule()}, engine="compiled")
    with pytest.raises(BadArgument, match=r"engine='compiled': .*attributes may change"):
        learn(model, optimizer, 1)
