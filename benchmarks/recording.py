"""What recording every step costs, as a share of an online step at batch size one.

    python benchmarks/recording.py

First the plain loop with and without a `Recorder`, taking turns; then the recorder's own calls,
timed alone and divided by the step, which is far less noisy. Both are the process's own time there.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from interleaved import images, interleaved, median, short_stream, table

from clmeta import MetaOptimize
from clmeta.models import make_model
from clmeta.record.recorder import Recorder
from clmeta.strategies import learn_online


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", help="a registered data set or .npz file")
    parser.add_argument("--model", default="cnn")
    parser.add_argument("--steps", type=int, default=1000, help="steps a round")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--blocks", default="layer")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)  # as `clmeta run` does
    data = images(options.dataset)

    def learner() -> tuple[Any, Any]:
        model = make_model(options.model, data.image_shape, data.n_classes, seed=0)
        return model, MetaOptimize(model.named_parameters(), blocks=options.blocks)

    with tempfile.TemporaryDirectory() as folder:
        ways = {
            "silent": loop(learner(), data, options.steps, None),
            "recorded": loop(learner(), data, options.steps, Path(folder)),
        }
        seconds = interleaved(ways, options.rounds)
        print(f"{options.model}, blocks {options.blocks!r}, on {data}")
        print(table(seconds, options.steps, against="silent"))
        step = median(seconds["silent"], clock=1) / options.steps
        own = recorder_alone(learner()[1], Path(folder) / "alone")
    print(
        f"recorder's calls, writing included: {own * 1e6:.1f} us a step, "
        f"{100 * own / step:.1f} % of a step of {step * 1e6:.0f} us"
    )


def loop(
    learner: tuple[Any, Any], data: Any, steps: int, folder: Path | None
) -> Callable[[int], Any]:
    """The plain loop; with a folder, recorded into it."""
    model, optimizer = learner

    def prepare(number: int) -> Callable[[], object]:
        stream = short_stream(data, steps, number)
        recorder = folder and Recorder(folder / str(number), optimizer.block_names, config={})
        return lambda: learn_online(model, optimizer, stream, recorder=recorder, evaluate=False)

    return prepare


def recorder_alone(optimizer: Any, folder: Path, steps: int = 20_000) -> float:
    """Process seconds a step of the recorder's two calls, parts written as in a run."""
    recorder = Recorder(folder, optimizer.block_names, config={})
    loss, hit = torch.tensor(2.3), torch.tensor([True])
    start = time.process_time()
    for _ in range(steps):
        recorder.before_step(optimizer)
        recorder.record(0, loss, hit)
    recorder.flush()
    return (time.process_time() - start) / steps


if __name__ == "__main__":
    main()
