"""When something that costs time is due: every so many steps, or every so many seconds."""

from __future__ import annotations

import math
import re
import time
from dataclasses import dataclass, field
from typing import Any

from clmeta.errors import require
from clmeta.ground.checks import whole

#: The default of checkpoints.
DEFAULT = "60s"
UNITS = {"s": 1.0, "min": 60.0, "h": 3600.0}
TIME = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)(s|min|h)")
#: The largest share of the time that saving may take.
SHARE = 0.01
MEND = "give a number of steps, such as 1000, a time, such as 60s, 5min or 1h, or none"


def every(argument: str, value: Any) -> int | str:
    """A number of steps as int, or a time as text. Raises BadArgument for anything else."""
    if not isinstance(value, str):
        return whole(argument, value, least=1)
    value = value.strip()
    if re.fullmatch(r"[0-9]{1,18}", value):
        return whole(argument, int(value), least=1)
    found = TIME.fullmatch(value)
    require(found is not None and float(found[1]) > 0, argument, value, MEND)
    return value


@dataclass
class Interval:
    """Steps, or seconds, between two savings; none if both are infinite.

    Attributes:
        steps, seconds: of which one is finite at most.
    """

    steps: float = math.inf
    seconds: float = math.inf
    _step: int = 0
    _time: float = field(default_factory=time.monotonic)

    @classmethod
    def of(cls, argument: str, value: int | str | None) -> Interval:
        """From ``1000`` (steps), ``"60s"``, ``"5min"``, ``"1h"`` or None.

        Raises:
            BadArgument: for anything else.
        """
        value = None if value is None else every(argument, value)
        if isinstance(value, str):
            number, unit = TIME.fullmatch(value).groups()  # type: ignore[union-attr]
            return cls(seconds=float(number) * UNITS[unit])
        return cls() if value is None else cls(steps=value)

    @property
    def saves(self) -> bool:
        """Whether there is any saving."""
        return min(self.steps, self.seconds) < math.inf

    def start(self, step: int) -> None:
        """Count from here."""
        self._step, self._time = step, time.monotonic()

    def due(self, step: int) -> bool:
        """Whether to save after ``step`` steps."""
        if self.seconds < math.inf:
            return time.monotonic() - self._time >= self.seconds
        return step - self._step >= self.steps

    def saved(self, step: int, cost: float) -> None:
        """Count from here; ``cost``: seconds that saving took, which stretch the next interval."""
        self.start(step)
        if self.seconds < math.inf:
            self._time += max(0.0, cost / SHARE - self.seconds)
