"""Which engine steps which optimiser: the choice is made here, or by the user."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from clmeta.engines.compiled import Compiled
from clmeta.engines.eager import Eager
from clmeta.engines.learners import Engine
from clmeta.engines.native import Native, why_not_native
from clmeta.errors import bad
from clmeta.lookup import Wanted
from clmeta.registry import Registry
from clmeta.rules import Rule


def _is_engine(found: Any) -> bool:
    return isinstance(found, type) and issubclass(found, Engine)


ENGINES: Registry[Callable[[], Engine]] = Registry(
    "engine", Wanted("a class made from clmeta.engines.learners.Engine", _is_engine)
)
ENGINES.register("native", about="C programs made from the rules' formulas, on the CPU.")(Native)
ENGINES.register("eager", about="torch's operations, on any device.")(Eager)
ENGINES.register("compiled", about="The eager text by torch.compile.")(Compiled)
AUTO = "auto"


def engines_for(
    engine: str, base: Rule, meta: Rule | None, granularity: str | None, device: torch.device,
    dtype: torch.dtype,
) -> list[Engine]:  # fmt: skip
    """The engines to ask, one after the other, to step an optimiser's rules.

    Raises:
        BadArgument: for an unknown engine, or one that cannot be had here, saying why.
    """
    if engine == AUTO:
        return [Native(), Eager()] if device.type == "cpu" else [Eager()]
    made = ENGINES.get(engine, "engine", also=(AUTO,))()
    if isinstance(made, Native):
        reason = why_not_native(base, meta, granularity, device, dtype)
        if reason:
            bad("engine", engine, f"{reason}; 'auto' takes what there is")
    return [made]
