"""Every engine goes on from any state: copied, loaded by another, changed between steps."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from benches import Alone, Stacked
from laws import Case, assert_alike, dense, expected, twins
from optimizer_parts import QUICK, compiled, every_engine, every_granularity

from clmeta.engines.gradient import Outer

# ---- in other hands ----------------------------------------------------------------------------


@pytest.mark.parametrize("engine", QUICK)
@every_granularity
def test_learners_may_leave_a_stack(engine, granularity):
    case = Case("adam", "adam", granularity, 3, "any")
    bench, expected = Stacked(case, engine), twins(case)
    staying = [0, 1, 2]
    for k, grads in enumerate(case.gradients()):
        if k in (3, 6):
            leaving = [r for r in range(len(staying)) if r != 1]
            bench.keep(leaving)
            expected.keep(leaving)
            staying = [staying[r] for r in leaving]
        mine = [g if g is None else take(g, staying) for g in grads]
        bench.step(mine)
        expected.step(list(map(dense, mine)))
    assert staying == [0]
    assert_alike(bench.read(), expected.read())


def take(g, rows):
    return Outer(g.a[rows], g.b[rows]) if isinstance(g, Outer) else g[rows]


def reloaded(bench, engine):
    """A fresh optimiser over the same weights that took over a checkpoint."""
    file = io.BytesIO()
    torch.save(bench.optimizer.state_dict(), file)
    file.seek(0)
    other = Alone(bench.case, engine)
    for q, p in zip(other.params, bench.params, strict=True):
        q.data.copy_(p.data)
    other.optimizer.load_state_dict(torch.load(file, weights_only=True))
    return other


def repeated(how):
    """A copy of an optimiser that takes its weights along."""

    def make(bench, engine):
        other = copy.copy(bench)
        other.optimizer = how(bench.optimizer)
        other.params = [p for group in other.optimizer.param_groups for p in group["params"]]
        return other

    return make


HOWS = {
    "loaded": reloaded,
    "copied": repeated(copy.deepcopy),
    "pickled": repeated(lambda optimizer: pickle.loads(pickle.dumps(optimizer))),
}


@every_engine
@every_granularity
@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("kind", ["dense", "partial"])
def test_a_copy_goes_on_bit_for_bit_and_alone(engine, granularity, how, kind):
    if engine == "compiled" and kind == "partial":
        pytest.skip("each form is a program, which takes seconds")
    case = Case("adam", "rmsprop", granularity, 0, kind)
    bench = Alone(case, engine)
    grads = case.gradients()
    for each in grads[:5]:
        bench.step(each)
    other = HOWS[how](bench, engine)
    before = bench.read()
    for each in grads[5:]:
        other.step(each)
    for name, old in bench.read().items():
        assert torch.equal(old, before[name]), name
    for each in grads[5:]:
        bench.step(each)
    for name, mine in bench.read().items():
        assert torch.equal(mine, other.read()[name]), name
    assert_alike(other.read(), expected(case))


@pytest.mark.parametrize("second", [*QUICK, compiled])
@pytest.mark.parametrize("first", [*QUICK, compiled])
@every_granularity
def test_a_checkpoint_goes_on_by_any_other_engine(first, second, granularity):
    case = Case("adam", "adam", granularity, 0, "dense")
    bench, grads = Alone(case, first), case.gradients()
    for each in grads[:5]:
        bench.step(each)
    bench = reloaded(bench, second)
    for each in grads[5:]:
        bench.step(each)
    assert_alike(bench.read(), expected(case))


# ---- changed between steps ---------------------------------------------------------------------


def share(bench):
    """As sending a state_dict to another process does: storage moves, the tensors stay."""
    for p in bench.params:
        for x in bench.optimizer.state[p].values():
            x.share_memory_()


def half_and_back(bench):
    for p in bench.params:
        p.data = p.data.half()
        p.data = p.data.double().clone()


def replace_weights(bench):
    for p in bench.params:
        p.data = p.data.clone() + 1


def replace_state(bench):
    for p in bench.params:
        state = bench.optimizer.state[p]
        for name in state.keys() & {"h", "m", "v", "meta_v"}:
            state[name] = state[name] * 1.5


def reload(bench):
    bench.optimizer.load_state_dict(copy.deepcopy(bench.optimizer.state_dict()))


def share_weights(bench):
    for p in bench.params:
        p.share_memory_()


def set_numbers(bench):
    for group in bench.optimizer.param_groups:
        group.update(eta=0.05, gamma=0.5, weight_decay=0.3)


CHANGES = [
    share, share_weights, half_and_back, replace_weights, replace_state, reload, set_numbers,
]  # fmt: skip


@pytest.mark.parametrize("engine", QUICK)
@every_granularity
@pytest.mark.parametrize("change", CHANGES, ids=lambda f: f.__name__)
def test_what_is_changed_between_steps_is_followed(engine, granularity, change):
    """The next steps are those of a fresh optimiser that starts from the same numbers."""
    case = Case("adam", "rmsprop", granularity, 0, "partial")
    bench, grads = Alone(case, engine), case.gradients()
    for each in grads[:6]:
        bench.step(each)
    change(bench)
    fresh = reloaded(bench, engine)
    for each in grads[6:]:
        bench.step(each)
        fresh.step(each)
    assert_alike(bench.read(), fresh.read(), rtol=0, atol=0)
    assert change in (share, share_weights, reload) or not alike(bench.read(), expected(case))


def alike(found, wanted):
    try:
        assert_alike(found, wanted)
    except AssertionError:
        return False
    return True
