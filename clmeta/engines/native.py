"""Steps on the CPU by C programs made from rules' formulas, each array read and written once."""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from clmeta.engines.eager import Eager
from clmeta.engines.gradient import Gradient, Outer
from clmeta.engines.job import Job
from clmeta.engines.learners import Engine, Learners, Numbers, fresh_learners
from clmeta.native import cc
from clmeta.native.program import MetaProgram, StepProgram
from clmeta.native.template import C_TYPES
from clmeta.native.trace import CannotTrace
from clmeta.rules import SGD, Rule


class Native(Engine):
    """Steps of all blocks by one program; learner after learner, while a trace is in the cache."""

    def __init__(self) -> None:
        self._job: Job | None = None
        self._of: Learners | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"_job": None, "_of": None}

    def step(self, learners: Learners, grads: Sequence[Gradient]) -> bool:
        """One update of all learners; False, with ``why_not``, where there is no program."""
        if self._of is not learners:
            self._of, self._job = learners, None
            found = programs_for(learners)
            self.why_not = found if isinstance(found, str) else None
            if not isinstance(found, str):
                self._job = Job(learners, *found)
        if self._job is None:
            return False
        self._job.step(grads)
        return True


def why_not_native(
    base: Rule,
    meta: Rule | None,
    granularity: str | None,
    device: torch.device,
    dtype: torch.dtype,
) -> str | None:
    """Why there is no program for some rules; None where there is one."""
    if device.type != "cpu":
        return f"weights on {device}, and C programs step those on the CPU"
    fine = meta if granularity else None
    found = _found(StepProgram, base, fine, meta is not None, granularity, dtype)
    return found if isinstance(found, str) else None


def programs_for(s: Learners) -> tuple[StepProgram, MetaProgram | None] | str:
    """The programs for learners' rules, where their arrays are such as they read; or why not."""
    reason = _unlike(s)
    if reason:
        return reason
    dtype, fine, traced = s.w[0].dtype, bool(s.fine), bool(s.h)
    meta = s.meta if fine else None
    step = _found(StepProgram, s.base, meta, traced, s.granularity, dtype)
    if isinstance(step, str) or fine or s.meta is None:
        return step if isinstance(step, str) else (step, None)
    above = _found(MetaProgram, s.meta, dtype)
    plain = all(
        x.dtype == dtype and x.shape == s.sizes.beta.shape and x.is_contiguous()
        for x in s.sizes.state.values()
    )
    return step, above if plain and isinstance(above, MetaProgram) else None


def _unlike(s: Learners) -> str | None:
    """What about some learners' arrays is not as the programs read it."""
    first = s.w[0]
    if s.shards is not None:
        return "weights are sharded over processes"
    if first.dtype not in C_TYPES or s.sizes.beta.dtype != first.dtype:
        return f"weights of {first.dtype}"
    for i, w in enumerate(s.w):
        alike = [w, *(xs[i] for xs in s.slots.values()), *s.h[i : i + 1]]
        units = list(s.fine[i].values()) if s.fine else []
        if not all(is_plain(x) and x.dtype == first.dtype for x in (*alike, *units)):
            return "weights or state that are no arrays of one type on the CPU"
        in_order = bool(units) or len(s) > 1
        # A copy keeps the order of dimensions, but no gaps.
        dense = w.is_contiguous() if in_order else torch.empty_like(w).stride() == w.stride()
        if not dense or any((x.shape, x.stride()) != (w.shape, w.stride()) for x in alike):
            return "weights or state with gaps, or in another order"
        if units:
            shape = units[0].shape
            whole = shape == w.shape or all(n == 1 for n in shape[2:])
            alike_units = all(x.is_contiguous() and x.shape == shape for x in units)
            if not whole or not alike_units:
                return "units whose weights are not stored one after the other"
    return None


def is_plain(x: Tensor) -> bool:
    """Whether a tensor is an array in this process's memory, its numbers stored as they are."""
    kind = type(x) in (Tensor, torch.nn.Parameter)
    return kind and x.is_cpu and x.layout is torch.strided and not x.is_neg()


def _found(kind: type[Any], *key: Any) -> Any:
    """A program that was compared with its rules, in this process once for all; or why not."""
    maker: Any = kind
    try:
        return _build(maker, key, tuple(cc.compiler() or ()))
    except TypeError:  # a rule that can't be hashed
        return "its attributes may change"


@functools.cache
def _build(kind: type[Any], key: tuple[Any, ...], compiler: tuple[str, ...]) -> Any:
    try:
        if kind is MetaProgram:
            rule, dtype = key
            made = MetaProgram(rule, dtype)
            compare(StepProgram(SGD(), None, True, False, dtype), made, SGD(), rule, None, dtype)
            return made
        base, meta, traced, granularity, dtype = key
        step = StepProgram(base, meta, traced, granularity is not None, dtype)
        compare(step, None, base, meta or (SGD() if traced else None), granularity, dtype)
    except (CannotTrace, cc.CannotBuild) as reason:
        text = "no native step for %s, which takes the slower way: %s"
        logging.getLogger("clmeta").info(text, key[0], reason)
        return str(reason)
    return step


def compare(
    step: StepProgram,
    above: MetaProgram | None,
    base: Rule,
    meta: Rule | None,
    granularity: str | None,
    dtype: torch.dtype,
) -> None:
    """Step two small learners by programs and by the rules, which may do more than was traced.

    Raises:
        CannotTrace: if they differ after one of twelve updates.
    """
    make = torch.Generator().manual_seed(0)
    shapes = [(2, 5, 130), (2, 5)]  # rows as long as vectors, and a rest
    # alpha starts at 1 and weights at 0, so that an error of u or beta is not small beside them.
    values = (torch.full((2, 2), x, dtype=torch.float64) for x in (0.1, 0.9, 0.1, -2.0, 2.0))
    numbers, block = Numbers(*values), torch.tensor([[0, 1], [1, 0]])
    by_program, by_rule = (
        fresh_learners(
            base,
            meta,
            granularity,
            [torch.zeros(shape, dtype=dtype) for shape in shapes],
            torch.zeros(2, 2, dtype=dtype),
            block,
            numbers,
        )
        for _ in range(2)
    )
    reason = _unlike(by_program)
    if reason:
        raise CannotTrace(f"init does not give one number a weight for each slot: {reason}")
    job, eager = Job(by_program, step, above), Eager()
    eager.uncut = True  # one by one, so that the base rule is given counts as Python's numbers
    rtol = 1e-3 if dtype == torch.float32 else 1e-8
    for t in range(1, 13):
        drawn = [0.2 * torch.randn(shape, generator=make, dtype=dtype) for shape in shapes]
        grads: list[Gradient] = [*drawn]
        if t % 3 == 0:
            grads[0] = Outer(drawn[0][:, :, :1], 5 * drawn[0][:, :1])
        job.apart = t % 2 == 0
        try:
            eager.step(by_rule, [g.dense() if isinstance(g, Outer) else g.clone() for g in grads])
        except Exception as error:  # whatever a rule's own code raises
            raise CannotTrace(f"{type(error).__name__}: {error}") from error
        job.step(grads)
        for a, b in zip(by_program.tensors(), by_rule.tensors(), strict=True):
            if not torch.allclose(a, b, rtol=rtol, atol=1e-2 * rtol, equal_nan=True):
                raise CannotTrace(f"does at update {t} what its formula does not")
