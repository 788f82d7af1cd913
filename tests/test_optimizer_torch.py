"""MetaOptimize against torch's own optimisers."""

from __future__ import annotations

import functools

import pytest
import torch
from optimizer_parts import feed, gradients, params_of

from clmeta import MetaOptimize
from clmeta.rules import SGD, Adam, RMSprop, SGDm


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
