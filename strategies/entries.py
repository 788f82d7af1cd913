"""Avalanche's strategies by name, for the command line; each imports Avalanche when it is used.

Adding one is one decorated function, of the strategy's options, that returns the Avalanche class,
its keywords, and plugins::

    @avalanche_strategy("mine", about="...")
    def mine(strength: Weight = 1.0) -> Made:
        from avalanche.training.plugins import MyPlugin
        from clmeta.strategies.online import Online

        return Online, {}, [MyPlugin(strength)]
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias, get_type_hints

from clmeta.lookup import Least, check_options
from clmeta.strategies.registry import STRATEGIES, Made

__all__ = ["STRATEGIES", "Made", "avalanche_strategy"]

if TYPE_CHECKING:
    from clmeta.strategies.plain import OnlineResult

Build = Callable[..., Made]
#: Samples, one at least.
Samples: TypeAlias = Annotated[int, Least(1)]
#: A weight of a loss or penalty.
Weight: TypeAlias = Annotated[float, Least(0)]
#: A temperature.
Positive: TypeAlias = Annotated[float, Least(0, itself=False)]


def avalanche_strategy(name: str, about: str) -> Callable[[Build], Build]:
    """Register an Avalanche strategy under ``name``, with the keywords of the decorated function.

    Args:
        name: what the command line calls it.
        about: one line for listings.
    """

    def enter(build: Build) -> Build:
        def learn(
            model: Any,
            optimizer: Any,
            stream: Any,
            *,
            recorder: Any = None,
            on_progress: Any = None,
            evaluate: bool = True,
            checkpoint: Any = None,
            **options: Any,
        ) -> OnlineResult:
            check_options(build, options, "strategy option")
            from clmeta.strategies.runs import learn_with

            return learn_with(
                build(**options),
                model,
                optimizer,
                stream,
                recorder=recorder,
                on_progress=on_progress,
                evaluate=evaluate,
                checkpoint=checkpoint,
            )

        common = list(inspect.signature(learn).parameters.values())[:-1]
        kinds = get_type_hints(build, include_extras=True)
        own = [
            p.replace(kind=p.KEYWORD_ONLY, annotation=kinds.get(name, p.annotation))
            for name, p in inspect.signature(build).parameters.items()
        ]
        learn.__signature__ = inspect.Signature(common + own)  # type: ignore[attr-defined]
        learn.__doc__ = build.__doc__
        STRATEGIES.register(name, about, source=build)(learn)
        return build

    return enter


@avalanche_strategy("online", "Avalanche: sample by sample, no defence against forgetting.")
def online() -> Made:
    """`clmeta.strategies.Online`, equal to the plain loop."""
    from clmeta.strategies.online import Online

    return Online, {}, []


@avalanche_strategy("replay", "Avalanche: replay from a memory balanced over tasks.")
def replay(mem_size: Samples = 200, batch_size_mem: Samples = 1) -> Made:
    """Online with ReplayPlugin; ``batch_size_mem`` of ``mem_size`` samples join each step."""
    from avalanche.training.plugins import ReplayPlugin

    from clmeta.strategies.online import Online

    return Online, {}, [ReplayPlugin(mem_size=mem_size, batch_size_mem=batch_size_mem)]


@avalanche_strategy("ewc", "Avalanche: elastic weight consolidation.")
def ewc(ewc_lambda: Weight = 1.0) -> Made:
    """Online with EWCPlugin; ``ewc_lambda`` weights its penalty."""
    from avalanche.training.plugins import EWCPlugin

    from clmeta.strategies.online import Online

    return Online, {}, [EWCPlugin(ewc_lambda=ewc_lambda)]


@avalanche_strategy("si", "Avalanche: synaptic intelligence.")
def si(si_lambda: Weight = 1e-3) -> Made:
    """Online with SynapticIntelligencePlugin; ``si_lambda`` weights its penalty."""
    from avalanche.training.plugins import SynapticIntelligencePlugin

    from clmeta.strategies.online import Online

    return Online, {}, [SynapticIntelligencePlugin(si_lambda=si_lambda)]


@avalanche_strategy("lwf", "Avalanche: learning without forgetting.")
def lwf(alpha: Weight = 1.0, temperature: Positive = 2.0) -> Made:
    """Online with LwFPlugin; ``alpha`` weights the distillation loss."""
    from avalanche.training.plugins import LwFPlugin

    from clmeta.strategies.online import Online

    return Online, {}, [LwFPlugin(alpha=alpha, temperature=temperature)]


@avalanche_strategy("er-ace", "Avalanche: experience replay with asymmetric cross-entropy.")
def er_ace(mem_size: Samples = 200, batch_size_mem: Samples = 10) -> Made:
    """Avalanche's ER_ACE; it fills its memory from a task before the first step of the task."""
    from avalanche.training.supervised import ER_ACE

    return ER_ACE, {"mem_size": mem_size, "batch_size_mem": batch_size_mem}, []


@avalanche_strategy("der", "Avalanche: dark experience replay; DER++ with beta > 0.")
def der(
    mem_size: Samples = 200, batch_size_mem: Samples = 10, alpha: Weight = 0.1, beta: Weight = 0.5
) -> Made:
    """Avalanche's DER; ``alpha`` weights stored logits, ``beta`` stored labels."""
    from avalanche.training.supervised import DER

    options = {"mem_size": mem_size, "batch_size_mem": batch_size_mem}
    return DER, {**options, "alpha": alpha, "beta": beta}, []
