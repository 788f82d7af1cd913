"""What a step costs: the optimiser alone, an online step, and many learners at once.

    python benchmarks/speed.py [--rounds 9] [--replicas 1 8 32 128] [--avalanche] [--json OUT]

The paper's CNN on 3 x 32 x 32 images at batch size one, one CPU thread, ways taking turns; with a
GPU, the same again on it. Times are the process's own; ratios are medians over rounds. The floor is
measured in the same run: the network's convolutions and products alone, and the memory traffic
(28 bytes a weight for AdamW, 36 with a trace) at the speed of torch's fused AdamW on as many
learners' weights.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from interleaved import images, interleaved
from torch import Tensor, nn
from torch.nn import functional as F
from transcription import Transcription

from clmeta import MetaOptimize
from clmeta.models import make_model
from clmeta.record.environment import describe_environment

warnings.filterwarnings("ignore")
logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
FUSED = "torch.optim.AdamW(fused=True)"
PAIRS = {"sgd": "adam", "sgdm": "adam", "rmsprop": "rmsprop", "adamw": "adam", "lion": "lion"}


def resnet_shapes() -> list[tuple[int, ...]]:
    """Parameter shapes of ResNet-18 for small images, 10 classes: 11.2 million weights."""
    shapes: list[tuple[int, ...]] = [(64, 3, 3, 3), (64,), (64,)]
    last = 64
    for width in (64, 128, 256, 512):
        for source in (last, width):
            shapes += [(width, source, 3, 3), (width,), (width,), (width, width, 3, 3)]
            shapes += [(width,), (width,)]
            if source != width:
                shapes += [(width, source, 1, 1), (width,), (width,)]
        last = width
    return [*shapes, (10, 512), (10,)]


def parameters(which: str, device: str) -> list[tuple[str, nn.Parameter]]:
    """Named parameters with gradients, as after a backward pass."""
    torch.manual_seed(0)
    if which == "cnn":
        named = make_model("cnn", (3, 32, 32), 10).to(device).named_parameters()
    else:
        named = (
            (f"layer{i}.weight", nn.Parameter(0.01 * torch.randn(shape, device=device)))
            for i, shape in enumerate(resnet_shapes())
        )
    made = list(named)
    for _, p in made:
        p.grad = 0.01 * torch.randn_like(p)
    return made


def wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def repeated(work: Callable[[], object], times: int, device: str) -> Callable[[int], Any]:
    def all_of_it() -> None:
        for _ in range(times):
            work()
        wait(device)

    return lambda _: all_of_it


def optimiser_ways(which: str, times: int, device: str) -> dict[str, Any]:
    """Optimiser steps alone."""

    def made(build: Callable[[Any], Any]) -> Callable[[int], Any]:
        return repeated(build(parameters(which, device)).step, times, device)

    def ours(base: str, **options: Any) -> Callable[[int], Any]:
        options = {"weight_decay": 0.1, "gamma": 0.999, **options}
        return made(lambda named: MetaOptimize(named, base, PAIRS[base], **options))

    ways = {
        FUSED: made(lambda named: torch.optim.AdamW([p for _, p in named], fused=True)),
        "torch.optim.AdamW()": made(lambda named: torch.optim.AdamW([p for _, p in named])),
        "torch.optim.AdamW(foreach=True)": made(
            lambda named: torch.optim.AdamW([p for _, p in named], foreach=True)
        ),
        "transcription, adamw": made(lambda named: Transcription([[p for _, p in named]])),
    }
    for base in PAIRS:
        ways[f"MetaOptimize {base}"] = ours(base)
    if device == "cpu":  # what remains where there is no C compiler
        ways["MetaOptimize adamw, engine='eager'"] = ours("adamw", engine="eager")
    if which == "cnn":
        ways["MetaOptimize adamw, engine='compiled'"] = ours("adamw", engine="compiled")
        for blocks in ("layer", "node", "weight"):
            ways[f"MetaOptimize adamw {blocks}"] = ours("adamw", blocks=blocks)
    ways["MetaOptimize adamw, fixed step sizes"] = made(
        lambda named: MetaOptimize(named, "adamw", "none", weight_decay=0.1)
    )
    return ways


def online_ways(steps: int, device: str, avalanche: bool) -> dict[str, Any]:
    """Forward, backward and optimiser step at batch size one."""
    data = torch.rand(steps, 1, 3, 32, 32, device=device)
    labels = torch.randint(0, 10, (steps, 1), device=device)

    def way(build: Callable[[nn.Module], Any]) -> Callable[[int], Any]:
        model = make_model("cnn", (3, 32, 32), 10, seed=0).to(device)
        optimizer = build(model)

        def work() -> None:
            for x, y in zip(data, labels, strict=True):
                loss = F.cross_entropy(model(x), y)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            wait(device)

        return lambda _: work

    options: dict[str, Any] = {"weight_decay": 0.1, "gamma": 0.999}
    ways = {
        f"plain loop, {FUSED}": way(lambda m: torch.optim.AdamW(m.parameters(), fused=True)),
        "plain loop, transcription": way(lambda m: Transcription([m.parameters()])),
        "plain loop, MetaOptimize": way(lambda m: MetaOptimize(m.named_parameters(), **options)),
    }
    if avalanche:
        from online import avalanche as in_avalanche

        model = make_model("cnn", (3, 32, 32), 10, seed=0)
        learner = model, torch.optim.AdamW(model.parameters(), fused=True)
        ways[f"Avalanche Naive, {FUSED}"] = in_avalanche("Naive", learner, images(None), steps)
    return ways


def replica_way(count: int, steps: int, device: str, meta: str) -> Callable[[int], Any]:
    """``steps`` steps of ``count`` learners as `run_replicas` makes them, without recording."""
    from clmeta.replicas.lockstep import Segment
    from clmeta.replicas.program import Program
    from clmeta.runs.config import RunConfig
    from clmeta.runs.prepared import Prepared, make_optimizer
    from clmeta.streams import permuted_inputs

    stream = permuted_inputs(images(None), tasks=1, steps_per_task=steps, device=device)
    prepared = []
    for seed in range(count):
        config = RunConfig(model="cnn", meta=meta, weight_decay=0.1, seed=seed)
        model = make_model("cnn", (3, 32, 32), 10, seed=seed).to(device)
        prepared.append(Prepared(config, stream, model, make_optimizer(config, model)))
    program = Program(prepared, compiled=True)
    x = torch.rand(steps, count, 1, 3, 32, 32, device=device)
    y = torch.randint(0, 10, (steps, count, 1), device=device)
    segment = Segment(x, y, [0] * count)

    def work() -> None:
        program.run(segment)
        wait(device)

    return lambda _: work


def arithmetic_way(count: int, times: int, device: str) -> Callable[[int], Any]:
    """The convolutions and matrix products of ``count`` learners' step, nothing else."""
    x1, x2 = (torch.rand(1, count * c, s, s, device=device) for c, s in ((3, 32), (16, 16)))
    w1, w2 = (torch.rand(count * o, i, 3, 3, device=device) for i, o in ((3, 16), (16, 32)))
    g1, g2 = (torch.rand(1, count * c, s, s, device=device) for c, s in ((16, 32), (32, 16)))
    x3, w3 = torch.rand(count, 1, 2048, device=device), torch.rand(count, 128, 2048, device=device)
    x4, w4 = torch.rand(count, 1, 128, device=device), torch.rand(count, 10, 128, device=device)
    g4 = torch.rand(count, 1, 10, device=device)
    back = torch.ops.aten.convolution_backward

    def backward(g: Tensor, x: Tensor, w: Tensor, mask: list[bool]) -> object:
        ones = [1, 1]
        return back(g, x, w, None, ones, ones, ones, False, [0, 0], count, mask)

    def work() -> None:
        F.conv2d(x1, w1, padding=1, groups=count)
        F.conv2d(x2, w2, padding=1, groups=count)
        torch.bmm(x3, w3.transpose(1, 2))
        torch.bmm(x4, w4.transpose(1, 2))
        torch.bmm(g4, w4)
        torch.bmm(x4, w3)
        backward(g2, x2, w2, [True, True, False])
        backward(g1, x1, w1, [False, True, False])

    return repeated(work, times, device)


def traffic_way(count: int, times: int, device: str) -> Callable[[int], Any]:
    """A fused AdamW step of ``count`` learners' weights: 28 bytes a weight."""
    size = sum(p.numel() for _, p in parameters("cnn", "cpu"))
    p = nn.Parameter(torch.rand(count, size, device=device))
    p.grad = torch.rand_like(p)
    return repeated(torch.optim.AdamW([p], fused=True).step, times, device)


def times_of(ways: dict[str, Any], rounds: int, each: dict[str, int] | int) -> dict[str, list]:
    """Microseconds per step (by the process's clock; the wall's with a GPU) of every round."""
    clock = 0 if torch.cuda.is_available() else 1
    seconds = interleaved(ways, rounds)
    counts = each if isinstance(each, dict) else dict.fromkeys(ways, each)
    return {k: [1e6 * s[clock] / counts[k] for s in values] for k, values in seconds.items()}


def show(title: str, times: dict[str, list], against: str, rows: list[dict[str, Any]]) -> None:
    print(f"\n{title}", flush=True)
    print(f"{'':44} {'us/step':>9} {'least':>9} {'steps/s':>9} {'ratio':>7}")
    for name, values in times.items():
        middle = statistics.median(values)
        pairs = zip(values, times[against], strict=True)
        ratio = statistics.median(a / b for a, b in pairs)
        row = {"part": title, "way": name, "us": middle, "least_us": min(values), "ratio": ratio}
        rows.append(row)
        print(f"{name:44} {middle:9,.1f} {min(values):9,.1f} {1e6 / middle:9,.0f} {ratio:7.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--replicas", type=int, nargs="*", default=[1, 8, 32, 128])
    parser.add_argument("--avalanche", action="store_true", help="with its Naive strategy")
    parser.add_argument("--json", type=Path, help="also write the table to this file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)  # as runs do
    rows: list[dict[str, Any]] = []
    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        for which, times in (("cnn", 20), ("resnet18", 2)):
            found = times_of(optimiser_ways(which, times, device), options.rounds, times)
            show(f"optimiser step, {which}, {device}", found, FUSED, rows)
        steps = 50
        ways = online_ways(steps, device, options.avalanche and device == "cpu")
        found = times_of(ways, options.rounds, steps)
        show(f"online step, {device}", found, "plain loop, transcription", rows)
        alone = statistics.median(found["plain loop, transcription"])
        for count in options.replicas:
            replicas(count, device, alone, options.rounds, rows)
    if options.json:
        content = {"environment": describe_environment(), "rows": rows}
        options.json.write_text(json.dumps(content, indent=1))


def replicas(
    count: int, device: str, alone: float, rounds: int, rows: list[dict[str, Any]]
) -> None:
    """The table of ``count`` learners, and how they stand to floor and transcription."""
    steps = max(8, 256 // count)  # long enough that caches are as in a run, not as after others
    ways = {
        "arithmetic": arithmetic_way(count, steps, device),
        "memory traffic, AdamW": traffic_way(count, steps, device),
        "replicas, fixed step sizes": replica_way(count, steps, device, "none"),
        "replicas, learned step sizes": replica_way(count, steps, device, "adam"),
    }
    found = times_of(ways, rounds, steps * count)
    show(f"{count} replicas, {device}, per learner", found, "arithmetic", rows)
    arithmetic, traffic, fixed, learned = (statistics.median(v) for v in found.values())
    floors = arithmetic + traffic, arithmetic + traffic * 9 / 7
    for name, us, floor in (("fixed", fixed, floors[0]), ("learned", learned, floors[1])):
        share, gain = floor / us, alone / us
        rows.append(
            {
                "part": f"{count} replicas, {device}",
                "way": name,
                "floor_us": floor,
                "share_of_floor": share,
                "times_transcription": gain,
            }
        )
        print(
            f"  {name}: floor {floor:,.0f} us, {share:.0%} of it reached; "
            f"{gain:.1f}x the transcription run one by one"
        )


if __name__ == "__main__":
    main()
