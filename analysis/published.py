"""The authors' published curves of the non-stationary CIFAR100 experiment, thinned.

Means of 5 seeds, ten tasks of ten classes, from the data published with the authors' experiment
code for Sharifnassab, Salehkaleybar and Sutton (ICML 2025, arXiv 2402.02342), Sec. 7.2: cumulative
accuracy every 1,000 steps, step sizes every 200.
"""

from __future__ import annotations

from importlib.resources import files

import pandas as pd

ACCURACY = "cumulative_accuracy_percent"
#: The published name of a block's step size, by our block names.
QUANTITIES = {"all": "alpha", "body": "alpha_block0", "head": "alpha_block1"}


def published_curves(base: str, variant: str, quantity: str = ACCURACY) -> pd.DataFrame:
    """One published curve, columns ``step`` and ``value``; empty where none was published.

    Args:
        base: ``"AdamW"``, ``"RMSProp"``, ``"Lion"`` or ``"SGDm"``.
        variant: ``"fixed"``, ``"scalar"`` or ``"head"``, the two blocks.
        quantity: `ACCURACY`, in percent, or one of `QUANTITIES`.
    """
    with (files("clmeta.analysis") / "published_cifar100.csv").open(encoding="utf-8") as file:
        table = pd.read_csv(file)
    mine = (table["base"] == base) & (table["variant"] == variant) & (table["quantity"] == quantity)
    return table.loc[mine, ["step", "value"]].reset_index(drop=True)
