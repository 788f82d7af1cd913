"""MetaOptimize(compile=True): the same step as one compiled program."""

from __future__ import annotations

import copy
import io
import warnings

import pytest
import torch

from clmeta import MetaOptimize
from clmeta.engines.compiled import CompiledPath, CompileWarning
from clmeta.engines.fuse import CannotCompile
from clmeta.engines.native import NativePath
from clmeta.engines.native_fine import NativeFinePath
from clmeta.native import cc as _cc
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


def compiled(optimizer):
    """By torch.compile, which the CPU's own programs would come before."""
    optimizer._path = CompiledPath(optimizer, optimizer._path.rule, optimizer.granularity)
    return optimizer


def pair(**options):
    """The same optimiser uncompiled and compiled, over equal networks."""
    models = [network(), network()]
    first, second = (MetaOptimize(m.named_parameters(), **options) for m in models)
    return models, [first, compiled(second)]


def assert_equal_learning(models, optimizers, **how):
    alphas = [learn(m, o, **how) for m, o in zip(models, optimizers, strict=True)]
    torch.testing.assert_close(*alphas, rtol=1e-5, atol=0)
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("base", BASES)
def test_equals_the_uncompiled_step(base):
    meta = "none" if base == "sgdm" else "lion" if base == "lion" else "adam"
    models, optimizers = pair(
        base=base, meta=meta, blocks="layer", alpha0=1e-3, eta=1e-2, gamma=0.99, weight_decay=0.1
    )
    assert_equal_learning(models, optimizers)


def test_nothing_is_compiled_again_as_numbers_change():
    models, optimizers = pair(alpha0=1e-3, eta=1e-2, blocks="layer", alpha_max=2e-3)
    assert_equal_learning(models, optimizers)
    programs = [s.program for s in optimizers[1]._path.sets.values()]
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group.update(eta=0.05, gamma=0.5, weight_decay=0.3)
    assert_equal_learning(models, optimizers, start=25)
    assert [s.program for s in optimizers[1]._path.sets.values()] == programs


def test_a_parameter_without_gradient_stays(recwarn):
    models, optimizers = pair(alpha0=1e-3, blocks="layer")
    for model in models:
        model[0].requires_grad_(False)
    assert_equal_learning(models, optimizers)
    assert optimizers[1].step_sizes()["0"] == pytest.approx(1e-3)


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


def test_saves_and_loads_across_compiled_and_uncompiled():
    models, optimizers = pair(alpha0=1e-3, eta=1e-2, blocks="layer")
    learn(models[1], optimizers[1], 10)
    file = io.BytesIO()
    torch.save(optimizers[1].state_dict(), file)
    file.seek(0)
    models[0].load_state_dict(models[1].state_dict())
    optimizers[0].load_state_dict(torch.load(file, weights_only=True))
    assert_equal_learning(models, optimizers, start=10)


def test_on_the_cpu_it_is_for_what_has_no_c_program():
    class Centred(Rule):
        def update(self, g, state, t):
            return g - g.mean(), state

    def path(base, **options):
        return MetaOptimize(network().parameters(), base, compile=True, **options)._path

    can = _cc.compiler() is not None
    assert isinstance(path("adamw"), NativePath if can else CompiledPath)
    assert isinstance(path(Centred()), CompiledPath)
    assert isinstance(path("adamw", blocks="weight"), NativeFinePath)


def test_without_a_compiler_it_warns_and_goes_on(monkeypatch):
    def broken(*args):
        raise CannotCompile("no compiler here")

    monkeypatch.setattr("clmeta.engines.compiled.Fused", broken)
    models, optimizers = pair(alpha0=1e-3, eta=1e-2, blocks="layer")
    with pytest.warns(CompileWarning, match="no compiler here"):
        learn(models[1], optimizers[1], 1)
    assert isinstance(optimizers[1]._path, NativePath)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        learn(models[1], optimizers[1], 24, start=1)
    learn(models[0], optimizers[0])
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("blocks", ["node", "weight"])
def test_finer_blocks_go_the_uncompiled_way(blocks):
    models, optimizers = pair(alpha0=1e-3, eta=1e-2, blocks=blocks)
    assert isinstance(optimizers[1]._path, CompiledPath)
    assert_equal_learning(models, optimizers)
