"""Ways to learn from a stream, by name; each loads what it needs only when it is used.

Adding a strategy is one decorated function of the same form::

    @STRATEGIES.register("mine")
    def mine(model, optimizer, stream, **common): ...
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from clmeta.lookup import Wanted, takes
from clmeta.registry import Registry

if TYPE_CHECKING:
    from clmeta.strategies.plain import OnlineResult

#: An Avalanche strategy to be: its class, its keywords, plugins.
Made = tuple[Any, dict[str, Any], list[Any]]
#: ``(model, optimizer, stream, *, recorder, on_progress, evaluate, **options) -> OnlineResult``
Strategy = Callable[..., "OnlineResult"]
#: Keywords that the runner fills in; all others are the strategy's own options.
COMMON = ("recorder", "on_progress", "evaluate")

STRATEGIES: Registry[Strategy] = Registry(
    "strategy",
    Wanted(
        f"a function that learns: (model, optimizer, stream, *, {', '.join(COMMON)}, **options)",
        takes(3, *COMMON),
    ),
)


@STRATEGIES.register("plain", about="The ordinary PyTorch loop.")
def plain(
    model: Any,
    optimizer: Any,
    stream: Any,
    *,
    recorder: Any = None,
    on_progress: Any = None,
    evaluate: bool = True,
) -> OnlineResult:
    """The ordinary PyTorch loop; see `clmeta.strategies.plain.learn_online`."""
    from clmeta.strategies.plain import learn_online

    return learn_online(
        model, optimizer, stream, recorder=recorder, on_progress=on_progress, evaluate=evaluate
    )
