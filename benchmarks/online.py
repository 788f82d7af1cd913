"""Online steps a second: the plain loop, `Online`, and Avalanche's Naive, side by side.

    python benchmarks/online.py

All learn the same samples at batch size one with the same optimiser, taking turns within one run.
The paper's CNN on 3 x 32 x 32 images unless told otherwise.
"""

from __future__ import annotations

import argparse
import io
import warnings
from collections.abc import Callable
from typing import Any

import torch
from interleaved import images, interleaved, short_stream, table

from clmeta import MetaOptimize
from clmeta.models import make_model
from clmeta.strategies import learn_online

warnings.filterwarnings("ignore")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", help="a registered data set or .npz file")
    parser.add_argument("--model", default="cnn")
    parser.add_argument("--steps", type=int, default=400, help="steps a round")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--blocks", default="layer")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--optimizer", choices=("metaoptimize", "adamw"), default="metaoptimize")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)  # as `clmeta run` does
    data = images(options.dataset)

    def learner() -> tuple[Any, Any]:
        model = make_model(options.model, data.image_shape, data.n_classes, seed=0)
        if options.optimizer == "adamw":
            return model, torch.optim.AdamW(model.parameters(), lr=1e-4)
        return model, MetaOptimize(model.named_parameters(), blocks=options.blocks)

    ways = {
        "plain": plain(learner(), data, options.steps),
        "online": avalanche("Online", learner(), data, options.steps),
        "naive": avalanche("Naive", learner(), data, options.steps),
        "naive+metrics": avalanche("Naive", learner(), data, options.steps, metrics=True),
    }
    print(f"{options.optimizer}, {options.model} on {data}, {options.threads} thread(s)")
    print(table(interleaved(ways, options.rounds), options.steps, against="plain"))


def plain(learner: tuple[Any, Any], data: Any, steps: int) -> Callable[[int], Any]:
    """The ordinary PyTorch loop."""

    def prepare(number: int) -> Callable[[], object]:
        stream = short_stream(data, steps, number)
        return lambda: learn_online(*learner, stream, evaluate=False)

    return prepare


def avalanche(
    name: str, learner: tuple[Any, Any], data: Any, steps: int, metrics: bool = False
) -> Callable[[int], Any]:
    """An Avalanche strategy; with ``metrics``, accuracy and loss as its default evaluator has."""
    from avalanche.evaluation.metrics import accuracy_metrics, loss_metrics
    from avalanche.logging import TextLogger
    from avalanche.training.plugins import EvaluationPlugin
    from avalanche.training.supervised import Naive

    from clmeta.strategies import MetaOptimizePlugin, Online

    model, optimizer = learner
    kinds = [f(minibatch=False, epoch=True) for f in (accuracy_metrics, loss_metrics)]
    evaluator = EvaluationPlugin(*kinds, loggers=[TextLogger(io.StringIO())]) if metrics else None
    common = {"model": model, "optimizer": optimizer, "evaluator": evaluator}
    if name == "Online":
        strategy = Online(**common)
    else:
        keep = [MetaOptimizePlugin()] if isinstance(optimizer, MetaOptimize) else []
        strategy = Naive(**common, train_mb_size=1, train_epochs=1, plugins=keep)

    def prepare(number: int) -> Callable[[], object]:
        (experience,) = short_stream(data, steps, number).benchmark().train_stream
        return lambda: strategy.train(experience, shuffle=False)

    return prepare


if __name__ == "__main__":
    main()
