"""Where a loop over a stream stands, as plain data that another process can go on from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from clmeta.errors import bad, require

if TYPE_CHECKING:
    from clmeta.streams.stream import Stream

PARTS = ("step", "stream", "data", "options")


def position(stream: Stream, step: int) -> dict[str, Any]:
    """The step that comes next and what tells the stream from others, as JSON has it."""
    options = json.loads(json.dumps(stream.options, default=str))
    data = stream.data.fingerprint
    return {"step": step, "stream": stream.name, "data": data, "options": options}


def next_step(stream: Stream, state: Any) -> int:
    """The step that comes next by a state of `position`.

    Raises:
        BadArgument: for anything else, and for a state of another stream, naming what differs.
    """
    whole = isinstance(state, Mapping) and all(part in state for part in PARTS)
    if not (whole and isinstance(state["options"], Mapping)):
        bad("state", state, "is no position in a stream; give what Stream.state returned")
    mine = stream.state(state["step"])
    mend = "differs; restore it into the stream that it was taken of"
    for part in ("stream", "data"):
        if mine[part] != state[part]:
            bad(f"state {part}", state[part], f"this stream has {mine[part]!r}: {mend}")
    ours, theirs = mine["options"], state["options"]
    for name in (*theirs, *ours):
        a, b = ours.get(name), theirs.get(name)
        require(a == b, f"state {name}", b, f"this stream has {name}={a!r}: {mend}")
    return mine["step"]
