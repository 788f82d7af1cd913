"""Time and memory of every mode of the general engine beside the Hessian-free optimiser.

    python benchmarks/general_modes.py [--device cuda] [--sizes 10000 100000] [--blocks 1 2 8]

Prints a Markdown table: milliseconds a step (median), and MiB that are kept between steps and
that a step takes at most, as estimated and as measured. The loss is that of a network of square
layers, one block each, on 16 examples. Modes that the engine refuses for memory are marked.
"""

from __future__ import annotations

import argparse
import ctypes
import ctypes.util
import gc
import itertools
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from clmeta import MetaOptimize
from clmeta.errors import BadArgument
from clmeta.general import APPROXIMATIONS, HESSIANS, GeneralMetaOptimize, functional_loss

MIB = 2**20
#: Exact diagonals take n products a step; the estimator's cost does not depend on n.
SAMPLES = 1
REFUSED = "does not fit"
M_MMAP_THRESHOLD = -3


def modes() -> list[dict]:
    """Every approximation with every Hessian, and both forms of the trace for L."""
    table: list[dict] = []
    for approximation, hessian in itertools.product(reversed(APPROXIMATIONS), reversed(HESSIANS)):
        samples = {"diagonal_samples": SAMPLES} if hessian == "diagonal" else {}
        mode = {"approximation": approximation, "hessian": hessian, **samples}
        forms = (True, False) if approximation == "L" else (False,)
        table += [{**mode, "condensed": condensed} for condensed in forms]
    return table


def resident(field: str) -> int | None:
    """Bytes of a field of /proc/self/status; None where there is none."""
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    line = next(x for x in status.read_text().splitlines() if x.startswith(field))
    return int(line.split()[1]) * 1024


def peak_growth(step: Callable[[], object], device: torch.device) -> int | None:
    """Bytes that a step takes at most beyond what is there before it."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    resets = Path("/proc/self/clear_refs")
    if not resets.exists():
        return None
    gc.collect()
    give_back_freed()
    resets.write_text("5")
    start = resident("VmRSS")
    step()
    top = resident("VmHWM")
    return None if start is None or top is None else top - start


def milliseconds(step: Callable[[], object], device: torch.device, seconds: float) -> float:
    """Median time of a step."""
    times, end = [], time.perf_counter() + seconds
    while len(times) < 3 or (time.perf_counter() < end and len(times) < 200):
        start = time.perf_counter()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times)


def network(n: int, blocks: int, device: torch.device) -> nn.Module:
    width = round((n / blocks) ** 0.5)
    layers: list[nn.Module] = []
    for _ in range(blocks):
        layers += [nn.Linear(width, width, bias=False), nn.Tanh()]
    return nn.Sequential(*layers).to(device)


def give_back_freed() -> None:
    """Let the C library return freed memory, so that the resident size counts what is in use."""
    name = ctypes.util.find_library("c")
    library = ctypes.CDLL(name) if name else None
    if library is not None and hasattr(library, "malloc_trim"):
        library.mallopt(M_MMAP_THRESHOLD, 1 << 16)
        library.malloc_trim(0)


def mse(prediction: Tensor, y: Tensor) -> Tensor:
    return ((prediction - y) ** 2).mean()


def optimiser_step(model: nn.Module, x: Tensor, y: Tensor) -> Callable[[], object]:
    optimiser = MetaOptimize(model.named_parameters(), "adamw", "adam", "layer")

    def step() -> None:
        optimiser.zero_grad()
        mse(model(x), y).backward()
        optimiser.step()

    return step


def measure_all(sizes: list[tuple[int, int]], device: torch.device, seconds: float) -> None:
    """Times first, under the allocator as it is; then memory."""
    rows: dict[tuple, list[str]] = {}
    for what in ("time", "memory"):
        for n, blocks in sizes:
            torch.manual_seed(0)
            model = network(n, blocks, device)
            width = next(model.parameters()).shape[0]
            x, y = (torch.randn(16, width, device=device) for _ in range(2))
            loss, params = functional_loss(model, mse)
            for mode in [None, *modes()]:
                key = (n, blocks, label(mode))
                cells = rows.setdefault(key, [])
                if cells == [REFUSED]:
                    continue
                estimate: dict[str, int] = {}
                if mode is None:
                    step = optimiser_step(model, x, y)
                else:
                    try:
                        engine = GeneralMetaOptimize(loss, params, "adamw", "adam", "layer", **mode)
                    except BadArgument:
                        cells.append(REFUSED)
                        continue
                    estimate = engine.memory_bytes()
                    step = partial(engine.step, x, y)
                step()
                if what == "time":
                    cells.append(f"{milliseconds(step, device, seconds):.2f}")
                else:
                    kept = estimate.get("kept", 16 * sum(p.numel() for p in model.parameters()))
                    growth = peak_growth(step, device)
                    cells.append(f"{kept / MIB:.1f}")
                    cells.append(f"{estimate['step'] / MIB:.1f}" if estimate else "")
                    cells.append("" if growth is None else f"{(kept + growth) / MIB:.1f}")
    for n, blocks in sizes:
        print(f"\n{n} weights, {blocks} blocks, {device}\n")
        print("| mode | ms a step | kept MiB | step MiB, estimated | step MiB, measured |")
        print("|---|---|---|---|---|")
        for mode in [None, *modes()]:
            cells = rows[n, blocks, label(mode)]
            print("| " + " | ".join([label(mode), *cells, *[""] * (4 - len(cells))]) + " |")


def label(mode: dict | None) -> str:
    if mode is None:
        return "`MetaOptimize`"
    form = ", condensed" if mode["condensed"] else ""
    return f"{mode['approximation']}, {mode['hessian']}{form}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 1_000_000])
    parser.add_argument("--blocks", type=int, nargs="+", default=[1, 2, 8])
    parser.add_argument("--seconds", type=float, default=1.0, help="time spent on each mode")
    args = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    sizes = list(itertools.product(args.sizes, args.blocks))
    measure_all(sizes, torch.device(args.device), args.seconds)


if __name__ == "__main__":
    main()
