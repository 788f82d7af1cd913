"""Seeds: what counts as one, and how one seed gives many that do not depend on each other."""

from __future__ import annotations

import hashlib
from typing import Any

from clmeta.errors import require
from clmeta.ground.checks import whole


def check_seed(value: Any) -> int:
    """A seed as Python's int. Raises BadArgument unless it is a whole number in [0, 2^63)."""
    seed = whole("seed", value, least=0)
    require(seed < 2**63, "seed", seed, "must lie in [0, 2^63)")
    return seed


def derive_seed(seed: int, purpose: str, *place: int) -> int:
    """A seed for one purpose at one place, in [0, 2^63), so that no draw moves another.

    Args:
        seed: of everything.
        purpose: what is drawn, such as ``"model"`` or ``"order"``.
        place: where, such as the number of a task.
    """
    label = "/".join(["clmeta", str(seed), purpose, *map(str, place)])
    return int.from_bytes(hashlib.sha256(label.encode()).digest()[:8], "little") % (1 << 63)
