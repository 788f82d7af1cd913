"""MetaOptimize refuses what cannot work, naming argument, value and mend."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from clmeta import BadArgument, MetaOptimize
from clmeta.rules import Adam

W = [nn.Parameter(torch.ones(2))]
NAMED = [("one.weight", W[0])]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MetaOptimize(W, gamma=1.5), r"gamma=1\.5: .*\[0, 1\]"),
        (lambda: MetaOptimize(W, alpha0=0), r"alpha0=0: .*positive"),
        (lambda: MetaOptimize(W, alpha0=math.nan), "alpha0=nan: must be a finite number"),
        (lambda: MetaOptimize(W, eta=-1.0), r"eta=-1\.0: must not be negative"),
        (lambda: MetaOptimize(W, weight_decay=-1), "weight_decay=-1"),
        (lambda: MetaOptimize(W, "adamm"), "base='adamm': unknown rule; did you mean 'adam'"),
        (lambda: MetaOptimize(W, 3), "base=3"),
        (lambda: MetaOptimize(W, meta="lino"), "meta='lino': .*known: .*lion"),
        (lambda: MetaOptimize(W, blocks="rows"), "blocks='rows': unknown .*known: .*layer"),
        (lambda: MetaOptimize(W, blocks="layer"), r"needs names; .*named_parameters"),
        (lambda: MetaOptimize(NAMED, blocks="head"), "belong to the last layer 'one'"),
        (lambda: MetaOptimize(NAMED, blocks={"a": "two"}), "no parameter has this prefix"),
        (lambda: MetaOptimize([]), "pass at least one parameter"),
        (lambda: MetaOptimize(W + W), "listed twice"),
        (lambda: MetaOptimize([torch.ones(2, dtype=torch.complex64)]), "real floating-point"),
        (lambda: MetaOptimize([{"weights": W}]), "dict with the key 'params'"),
        (lambda: MetaOptimize([{"params": W, "lr": 1}]), "is called alpha0"),
        (lambda: MetaOptimize([{"params": W, "gamma": 2}]), "gamma=2"),
        (lambda: MetaOptimize(W, alpha_min=1.0), r"alpha_min=1\.0: must not exceed alpha0"),
        (lambda: MetaOptimize(W, alpha_max=1e-9), "alpha_max=1e-09"),
        (lambda: MetaOptimize(W, nonfinite="ignore"), "nonfinite='ignore'"),
        (
            lambda: MetaOptimize(W, lambda p: torch.optim.AdamW(p, weight_decay=0.3)),
            r"weight_decay=0\.3.*to MetaOptimize",
        ),
        (lambda: MetaOptimize(W, lambda p: None), r"must return a torch\.optim\.Optimizer"),
        (lambda: MetaOptimize(W, torch.optim.LBFGS), "first-order"),
        (lambda: MetaOptimize(W, torch.optim.SGD, blocks="weight"), "one lr per block"),
        (lambda: Adam(rho=1.0), r"rho=1\.0: must lie in \[0, 1\)"),
    ],
)
def test_bad_input_names_argument_value_and_mend(make, message):
    with pytest.raises(BadArgument, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_sparse_gradients_are_refused():
    table = nn.Embedding(4, 2, sparse=True)
    optimizer = MetaOptimize(table.parameters())
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(BadArgument, match="dense gradients"):
        optimizer.step()
