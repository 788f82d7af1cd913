"""Which runs can train together."""

from __future__ import annotations

import json
from collections.abc import Hashable

from clmeta.blocks import FINE
from clmeta.runs.config import OPTIONS, PROCESS, RunConfig
from clmeta.runs.options import DATA


def together(config: RunConfig, shape: Hashable = None) -> str:
    """What runs that train together have in common; they may differ in all else.

    Args:
        config: the run.
        shape: of its data and batches, where known; None: its stream and data set stand for it.
    """
    options = config.to_dict()
    alike = {
        name: options[name]
        for name, each in OPTIONS.items()
        if each.apart
        and (each.identity or name in PROCESS)
        and (shape is None or each.panel != DATA)
    }
    finer = config.blocks if config.blocks in FINE else None
    return json.dumps([alike, shape, finer], sort_keys=True)
