"""What a step costs: time, and memory of the tensors that it makes."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import accumulate
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile


def peak_bytes(step: Callable[[], Any], device: torch.device) -> int:
    """Most bytes that tensors made by ``step()`` take at one time, beside what was there before.

    Measured: on CUDA by torch's allocator, elsewhere from the profiler's record of every
    allocation on the CPU.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        step()
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        step()
    results = record.profiler.kineto_results
    events = [(e.start_ns(), e.nbytes()) for e in results.events() if e.name() == "[memory]"]
    return max(accumulate((size for _, size in sorted(events)), initial=0))


def seconds(device: torch.device) -> float:
    """A clock that waits for the device first."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
