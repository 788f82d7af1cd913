"""How many learners to train at a time: predicted memory first, then a short measurement."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

from clmeta.ground.machine import GIB, available_bytes
from clmeta.replicas.lockstep import Lockstep
from clmeta.replicas.program import Program, rules_of
from clmeta.runs.config import RunConfig
from clmeta.runs.prepared import Prepared, prepare

#: Chunks to try, and the one to take where measuring would cost more than it brings.
CANDIDATES = (4, 8, 16, 32)
DEFAULT = 16
#: Learner-steps below which nothing is measured.
WORTH_MEASURING = 50_000
#: Share of the memory there is that learners may take.
SHARE = 0.5
#: Memory taken for that of a machine that cannot be asked: of its CPUs' task, of its device.
ELSEWHERE = 4 * GIB
ELSEWHERE_ON_DEVICE = 16 * GIB


def learner_bytes(prepared: Prepared) -> int:
    """Predicted memory of one learner.

    Its weights twice (the network that test accuracy is measured with has its own), gradient,
    trace and base state; and what one backward pass keeps, taken as four times the layers' outputs.
    """
    base, meta = rules_of(prepared)
    numbers = sum(p.numel() * p.element_size() for p in prepared.model.parameters())
    slots = len(base.slots) if base is not None else 0
    outputs = 0

    def count(module: object, args: object, output: object) -> None:
        nonlocal outputs
        if isinstance(output, torch.Tensor):
            outputs += output.numel() * output.element_size()

    hooks = [m.register_forward_hook(count) for m in prepared.model.modules()]
    x = torch.zeros(
        prepared.stream.batch_size,
        *prepared.stream.input_shape,
        device=prepared.optimizer.alpha.device,
    )
    with torch.no_grad():
        prepared.model(x)
    for hook in hooks:
        hook.remove()
    return numbers * (3 + slots + (meta is not None)) + 4 * outputs


def most_that_fit(prepared: Prepared, memory: int | None, most: int) -> int:
    """As many learners as fit into their share of ``memory`` bytes (None: not known), to ``most``.

    One is always let try.
    """
    if memory is None:
        return most
    return min(most, max(1, int(SHARE * memory / learner_bytes(prepared))))


def choose_chunk(configs: Sequence[RunConfig], total_steps: int, processes: int = 1) -> int:
    """The number of learners at a time for which a step of one takes least.

    Args:
        configs: the runs of one group.
        total_steps: of all of them together.
        processes: that train so many each at the same time, on one device or host.

    Raises:
        NotBatchable: as the batched program does.
    """
    prepared = prepare(configs[0])
    device = prepared.optimizer.alpha.device
    memory = available_bytes(device if device.type == "cuda" else torch.device("cpu"))
    each = None if memory is None else memory // processes
    most = most_that_fit(prepared, each, len(configs))
    if device.type != "cpu":
        return most  # more learners only fill the device better
    if total_steps < WORTH_MEASURING or most <= CANDIDATES[0]:
        return min(most, DEFAULT)
    sizes = sorted({min(size, most) for size in CANDIDATES})
    times = {size: step_seconds(prepared, size) / size for size in sizes}
    return min(times, key=lambda size: times[size])


def step_seconds(prepared: Prepared, size: int, repeats: int = 8) -> float:
    """Least time of a step of ``size`` copies of one learner."""
    program = Program([prepared] * size, prepared.config.engine)
    segment = next(iter(Lockstep([prepared.stream] * size)))
    best = float("inf")
    for at in range(min(repeats + 2, len(segment.y))):
        start = time.perf_counter()
        grads, _, _ = program.gradients(segment.x[at], segment.y[at])
        program.update(grads)
        if at >= 2:
            best = min(best, time.perf_counter() - start)
    return best
