"""What checkpoints cost: runs with and without them, taking turns.

    python benchmarks/checkpoints.py [--rounds 3] [--steps 4000] [--every 60s 1s 100]

The paper's CNN on 3 x 32 x 32 images at batch size one, one CPU thread: one run, and 16 learners
trained together. Ratios, by the wall's clock and the process's own, are medians over rounds of
whole runs, recorded as ever; with them goes what one checkpoint takes, by which any interval can be
judged.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from interleaved import Seconds, images, interleaved, median, table

from clmeta.record.checkpoint import Checkpoint
from clmeta.replicas import run_replicas
from clmeta.runs.config import RunConfig


class Counted:
    """Notes what every checkpoint takes: seconds by the wall's clock and the process's, bytes."""

    def __init__(self) -> None:
        self.seconds: list[Seconds] = []
        self.size = 0
        save = Checkpoint.save

        def counted(checkpoint: Checkpoint, *args: Any) -> Path:
            started, own = time.perf_counter(), time.process_time()
            file = save(checkpoint, *args)
            self.seconds.append((time.perf_counter() - started, time.process_time() - own))
            self.size = file.stat().st_size
            return file

        Checkpoint.save = counted  # type: ignore[method-assign]


def way(count: int, steps: int, every: str | None, data: Path, folder: Path) -> Any:
    """A round: so many learners' runs from start to end."""
    configs = [
        RunConfig(
            dataset=str(data),
            stream_options={"tasks": 1, "steps_per_task": steps},
            model="cnn",
            blocks="layer",
            seed=seed,
            evaluate=False,
            checkpoint_every=every,
        )
        for seed in range(count)
    ]

    def prepare(number: int) -> Callable[[], object]:
        folders = [folder / f"{every}-{number}-{config.seed}" for config in configs]
        return lambda: run_replicas(configs, folders, chunk=count)

    return prepare


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4000, help="of one run; 16 take a quarter")
    parser.add_argument("--every", nargs="*", default=["60s", "1s", "100"])
    parser.add_argument("--learners", type=int, nargs="*", default=[1, 16])
    options = parser.parse_args()
    noise = images(None)
    counted = Counted()
    with tempfile.TemporaryDirectory() as place:
        data = Path(place) / "noise.npz"
        x, y = (np.asarray(each) for each in (noise.x_train, noise.y_train))
        pixels = x.transpose(0, 2, 3, 1)
        np.savez(data, x_train=pixels, y_train=y, x_test=pixels[:100], y_test=y[:100])
        for count in options.learners:
            steps = options.steps if count == 1 else options.steps // 4
            folder = Path(place) / str(count)
            counted.seconds.clear()
            ways = {
                name: way(count, steps, None if name == "none" else name, data, folder)
                for name in ("none", *options.every)
            }
            print(f"\n{count} learner{'s' * (count > 1)}, {steps:,} steps, checkpoints every ...")
            print(table(interleaved(ways, options.rounds), steps, against="none"))
            if counted.seconds:
                wall, own = (median(counted.seconds, clock) for clock in (0, 1))
                print(
                    f"{len(counted.seconds)} checkpoints of {counted.size / 1e6:.1f} MB: "
                    f"{1e3 * wall:.1f} ms by the wall, {1e3 * own:.1f} of the process's own; "
                    f"{wall / 60:.3%} of a minute",
                    flush=True,
                )


if __name__ == "__main__":
    main()
