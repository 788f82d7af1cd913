"""Time several ways of doing the same work in turn, so that a busy machine slows all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import torch

from clmeta.streams import ArrayData, Stream, load_dataset, permuted_inputs

#: Seconds by the clock on the wall, and of this process's own work.
Seconds = tuple[float, float]
Work = Callable[[int], Callable[[], object]]


def images(dataset: str | None) -> ArrayData:
    """A named data set or file; by default noise in CIFAR's shape, on which steps cost the same."""
    if dataset:
        return load_dataset(dataset, download=False)
    random = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (1100, 3, 32, 32), dtype=torch.uint8, generator=random)
    y = torch.arange(1100) % 10
    return ArrayData(x[:1000], y[:1000], x[1000:], y[1000:], name="noise")


def short_stream(data: ArrayData, steps: int, seed: int) -> Stream:
    """One task at batch size one."""
    return permuted_inputs(data, tasks=1, steps_per_task=steps, seed=seed)


def interleaved(ways: Mapping[str, Work], rounds: int) -> dict[str, list[Seconds]]:
    """Seconds of every way in every round; the first round warms up and is dropped.

    Args:
        ways: name to a function that prepares a round and returns what is to be timed.
        rounds: rounds that count. Each one takes the ways in another order.
    """
    seconds: dict[str, list[Seconds]] = {name: [] for name in ways}
    names = list(ways)
    for number in range(rounds + 1):
        at = number % len(names)
        for name in names[at:] + names[:at]:
            work = ways[name](number)
            start, own = time.perf_counter(), time.process_time()
            work()
            if number:
                seconds[name].append((time.perf_counter() - start, time.process_time() - own))
    return seconds


def median(values: list[Seconds], clock: int = 0) -> float:
    """Median seconds by the wall (0) or of the process (1)."""
    return statistics.median(value[clock] for value in values)


def table(seconds: Mapping[str, list[Seconds]], steps: int, against: str) -> str:
    """Steps a second (median, quartiles); time relative to one way, by wall and process clock.

    Ratios are medians of the rounds' ratios. On a machine that others use, the process's own
    time (with one thread on the CPU) says more than the wall's.
    """
    width = max(map(len, seconds))
    lines = [
        f"{'':{width}}  {'steps/s':>8}  {'quartiles':>13}  {'us/step':>8}  ratio: wall  process"
    ]
    for name, values in seconds.items():
        low, _, high = statistics.quantiles([wall for wall, _ in values], n=4)
        wall, process = (
            statistics.median(a[i] / b[i] for a, b in zip(values, seconds[against], strict=True))
            for i in (0, 1)
        )
        middle = median(values)
        quartiles = f"{steps / high:,.0f}-{steps / low:,.0f}"
        lines.append(
            f"{name:{width}}  {steps / middle:8,.0f}  {quartiles:>13}  "
            f"{middle / steps * 1e6:8,.0f}  {wall:11.3f}  {process:7.3f}"
        )
    return "\n".join(lines)
