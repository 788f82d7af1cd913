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
#: Keywords that the runner fills in.
NEEDED = ("recorder", "on_progress", "evaluate")
#: With one that it fills in where a strategy takes it, whose runs go on from where they were
#: killed; all other keywords are the strategy's own options.
CHECKPOINT = "checkpoint"
COMMON = (*NEEDED, CHECKPOINT)

STRATEGIES: Registry[Strategy] = Registry(
    "strategy",
    Wanted(
        f"a function that learns: (model, optimizer, stream, *, {', '.join(NEEDED)}, **options)",
        takes(3, *NEEDED),
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
    checkpoint: Any = None,
) -> OnlineResult:
    """The ordinary PyTorch loop; see `clmeta.strategies.plain.learn_online`."""
    from clmeta.strategies.plain import learn_online

    return learn_online(
        model,
        optimizer,
        stream,
        recorder=recorder,
        on_progress=on_progress,
        evaluate=evaluate,
        checkpoint=checkpoint,
    )
