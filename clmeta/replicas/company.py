"""With whom a run trained, as its ``config.json`` notes it, so that it repeats to the bit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from clmeta.errors import BadArgument, bad
from clmeta.runs.config import FACTS, RunConfig
from clmeta.runs.trust import code_of

#: The note's name among the facts of a run.
TOGETHER = "together"


def company(configs: Sequence[RunConfig], row: int) -> dict[str, Any]:
    """Place and, for each of the others, the options in which it differs; {} for a run alone."""
    if len(configs) < 2:
        return {}
    mine = configs[row].to_dict()
    others = [config.to_dict() for at, config in enumerate(configs) if at != row]
    differing = [{k: v for k, v in each.items() if v != mine[k]} for each in others]
    return {TOGETHER: {"place": row, "others": differing}}


def company_of(content: Mapping[str, Any], config: RunConfig) -> tuple[RunConfig | None, ...]:
    """All that trained together, in order, None standing for the run itself; () for a run alone.

    Args:
        content: of the run's ``config.json``.
        config: the run that is asked for; where it computes something else, it trains alone.

    Raises:
        BadArgument: for a note that was not written by a run, or names code that the run does not.
    """
    facts = content.get(FACTS, {})
    note = facts.get(TOGETHER) if isinstance(facts, Mapping) else None
    known = {name: value for name, value in content.items() if name not in (FACTS, "method")}
    if note is None or RunConfig.from_dict(known).key() != config.key():
        return ()
    try:
        mine = config.to_dict()
        others = [RunConfig.from_dict({**mine, **each}) for each in note["others"]]
        place = range(len(others) + 1).index(note["place"])
    except (BadArgument, TypeError, KeyError, ValueError) as error:
        bad(f"{FACTS}.{TOGETHER}", note, f"is not what a run writes there ({error}); leave it out")
    for each in others:
        strange = code_of(each.to_dict()) - code_of(mine)
        if strange:
            bad(f"{FACTS}.{TOGETHER}", sorted(strange), "names code that the run itself does not")
    return (*others[:place], None, *others[place:])
