"""A stream goes on from any step as if it had never stopped, whatever came before."""

import itertools
import json
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stream_parts import DATA, equal, numbered

from clmeta.errors import BadArgument
from clmeta.streams import (
    STREAMS,
    abrupt_classes,
    permuted_inputs,
    permuted_labels,
    stationary,
)

MANY_CLASSES = numbered(200, 100, 100, (1, 3, 3))

lengths = st.one_of(
    st.fixed_dictionaries({"epochs": st.integers(1, 2)}),
    st.fixed_dictionaries({"steps_per_task": st.integers(1, 35)}),
)
others = st.fixed_dictionaries(
    {"seed": st.integers(0, 2**40), "batch_size": st.integers(1, 9)},
    optional={
        "repeats": st.integers(1, 2),
        "augment": st.sampled_from([None, "crop-flip", "crop", "flip"]),
        "head": st.sampled_from(["shared", "growing", "full"]),
    },
)


@st.composite
def short_streams(draw, name):
    """Any setting of a registered stream that takes few steps."""
    options = {**draw(lengths), **draw(others)}
    takes = STREAMS.get(name)
    if name in ("abrupt_classes", "cifar100-10x10", "cifar100-5x20"):
        options |= {"tasks": draw(st.integers(1, 3)), "classes_per_task": draw(st.integers(5, 33))}
        return takes(MANY_CLASSES, **options)
    options.pop("head", None)
    if name != "stationary":
        options["tasks"] = draw(st.integers(1, 3))
    return takes(numbered(draw(st.integers(9, 90)), 3, 3, (1, 3, 3)), **options)


def merged(steps):
    """All samples of some steps, and which step and task each belongs to; quick to compare."""
    steps = list(steps)
    if not steps:
        return torch.empty(0), torch.empty(0), []
    places = [(len(y), task, step) for _, y, task, step in steps]
    return torch.cat([x for x, *_ in steps]), torch.cat([y for _, y, _, _ in steps]), places


@pytest.mark.parametrize("name", list(STREAMS))
@given(st.data())
@settings(max_examples=5, deadline=None)
def test_restored_at_every_step_all_that_follows_is_equal(name, data):
    stream = data.draw(short_streams(name))
    again = pickle.loads(pickle.dumps(stream))
    x, y, places = merged(stream)
    assert len(places) == len(stream)
    before = list(itertools.accumulate((n for n, *_ in places), initial=0))
    for step in range(len(stream) + 1):
        state = json.loads(json.dumps(stream.state(step)))
        later_x, later_y, later = merged(again.restore(state))
        assert later == places[step:]
        if later:
            assert torch.equal(later_x, x[before[step] :])
            assert torch.equal(later_y, y[before[step] :])


@pytest.mark.parametrize("batch_size", [1, 7])
def test_a_task_goes_on_from_any_of_its_steps_alone(batch_size):
    stream = permuted_labels(DATA, tasks=2, epochs=3, batch_size=batch_size)
    steps = list(stream.task_batches(1))
    for start in range(len(steps) + 1):
        assert equal(stream.task_batches(1, start), steps[start:])
        assert stream.locate(stream.boundaries[1] + start) == (
            (1, start) if start < len(steps) else (2, 0)
        )


def test_batches_lie_in_memory_as_without_a_stop():
    stream = stationary(DATA, batch_size=3)
    steps = list(stream)
    for k in range(len(steps)):
        assert next(stream.steps_from(k))[0].storage_offset() == steps[k][0].storage_offset()


LONG = {
    "one long task of many passes": lambda: stationary(
        DATA, steps_per_task=10**6, augment="crop-flip"
    ),
    "many passes, batches across them": lambda: stationary(DATA, epochs=10**5, batch_size=7),
    "many tasks": lambda: permuted_inputs(DATA, tasks=300_000, steps_per_task=4),
    "many tasks, relabelled": lambda: permuted_labels(DATA, tasks=300_000, augment="flip"),
    "many repeats": lambda: abrupt_classes(DATA, tasks=5, repeats=200_000),
}


@pytest.mark.parametrize("make", LONG.values(), ids=LONG)
def test_a_late_step_is_reached_by_drawing_its_own_pass_and_block(make, monkeypatch):
    stream = make()
    assert len(stream) >= 800_000
    drawn = {"randperm": 0, "randint": 0}
    for name in ("randperm", "randint"):
        real = getattr(torch, name)

        def counting(*args, name=name, real=real, **options):
            made = real(*args, **options)
            drawn[name] += made.numel()
            return made

        monkeypatch.setattr(torch, name, counting)
    state = stream.state(len(stream) - 2)
    x, _, task, step = next(stream.restore(state))
    assert (task, step) == (stream.n_tasks - 1, len(stream) - 2)
    # At most the pass before, whose rest begins a batch, this pass, and the task's permutation.
    assert 0 < drawn["randperm"] <= 3 * 60
    assert drawn["randint"] <= 2 * 60 * 4
    assert x.untyped_storage().nbytes() <= 70 * 16 * 4


def test_counts_that_no_memory_holds_are_refused_by_name():
    for make, message in (
        (lambda: permuted_inputs(DATA, 10**9), r"tasks=1000000000: .*at most 10000000 tasks"),
        (lambda: permuted_labels(DATA, 10**30), r"tasks=10+: must lie in \[1, 2\^63\)"),
        (lambda: stationary(DATA, repeats=10**9), r"repeats=1000000000: .*at most 10000000 tasks"),
        (lambda: permuted_inputs(DATA, 10**4, repeats=10**4), r"repeats=10000: a stream has at"),
        (lambda: stationary(DATA, epochs=2**62), r"epochs=\d+: makes \d+ steps in all"),
    ):
        with pytest.raises(BadArgument, match=message):
            make()


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda: permuted_labels(DATA, 2), "state stream='permuted_inputs': .*'permuted_labels'"),
        (lambda: permuted_inputs(numbered(61), 2), "state data='.*this stream has '"),
        (lambda: permuted_inputs(DATA, 2, seed=1), "state seed=0: this stream has seed=1: .*taken"),
        (lambda: permuted_inputs(DATA, 3), "state tasks=2: this stream has tasks=3"),
        (lambda: permuted_inputs(DATA, 2, batch_size=2), "state batch_size=1: .*batch_size=2"),
        (lambda: permuted_inputs(DATA, 2, epochs=2), "state epochs=1: this stream has epochs=2"),
        (lambda: permuted_inputs(DATA, 2, augment="flip"), "state augment=None: .*='flip'"),
    ],
)
def test_the_state_of_another_stream_is_refused_naming_what_differs(other, message):
    state = permuted_inputs(DATA, 2).state(5)
    with pytest.raises(BadArgument, match=message):
        other().restore(state)


@pytest.mark.parametrize("state", [None, 3, "five", [], {}, {"step": 1}, {"options": 1}])
def test_what_is_no_state_is_refused(state):
    with pytest.raises(BadArgument, match=r"is no position in a stream; give what Stream\.state"):
        stationary(DATA).restore(state)


def test_steps_that_a_stream_does_not_have_are_refused():
    stream = stationary(DATA)
    for step in (-1, 61, 2**40):
        for use in (stream.state, stream.steps_from, stream.locate):
            with pytest.raises(BadArgument, match=r"step=.*steps 0 to 59, and ends at 60"):
                use(step)
    for step in (1.5, True, "2", None):
        with pytest.raises(BadArgument, match=r"step=.*must be a whole number"):
            stream.state(step)
    assert stream.state(np.int64(3)) == stream.state(3)
    with pytest.raises(BadArgument, match="start=-1: must be a whole number of at least 0"):
        next(stream.blocks(0, start=-1))
