"""What every engine keeps to beside the equations, over the table of cases in `laws.py`."""

from __future__ import annotations

import copy
import io
import math
import pickle

import pytest
import torch
from laws import Alone, Case, Stacked, assert_alike, expected, made, twins
from optimizer_parts import QUICK, compiled, every_engine, every_granularity
from torch.utils._python_dispatch import TorchDispatchMode

from clmeta import NonFiniteError
from clmeta.engines.gradient import Outer

each_learner = pytest.mark.parametrize("learners", [0, 3])

# ---- values that are not finite ----------------------------------------------------------------


@every_engine
@every_granularity
@each_learner
@pytest.mark.parametrize("meta", ["adam", "none"])
def test_what_is_not_finite_reaches_nothing_and_is_named(engine, granularity, learners, meta):
    case = Case("adam", meta, granularity, learners, "outer" if learners else "dense")
    last = case.rows - 1
    values = [math.nan, math.inf, -math.inf] if engine != "compiled" else [math.nan]
    for value, tensor in zip(values, (2, 1, 0), strict=False):
        bench, expected = made(case, engine, nonfinite="raise"), twins(case)
        for k, grads in enumerate(case.gradients()):
            if k == 4:
                before = bench.read()
                bench.step(spoilt(grads, tensor, last, value))
                after = bench.read()
                for name, old in before.items():
                    assert name == "z" or torch.equal(after[name][last], old[last]), name
                expected.step(list(map(as_dense, grads)), rows=range(last))
            bench.step(grads)
            expected.step(list(map(as_dense, grads)))
        assert_alike(bench.read(), expected.read())
        name = bench.names[last][bench.owner(last, tensor)]
        assert bench.sizes.withheld.tolist() == [0] * last + [1]
        with pytest.raises(NonFiniteError, match=f"step 4: .* in block '{name}';"):
            bench.sizes.check_finite(bench.names[last], last)


def as_dense(g):
    return g.dense() if isinstance(g, Outer) else g


def spoilt(grads, tensor, row, value):
    """Gradients with one number that is not finite; both factors of a product can bring it in."""
    grads = copy.deepcopy(grads)
    g = grads[tensor]
    (g.b if isinstance(g, Outer) else g)[row].flatten()[-1] = value
    return grads


@every_engine
@pytest.mark.parametrize("granularity", ["layer", "node", "weight"])
def test_a_product_that_overflows_is_withheld(engine, granularity):
    """Each factor is finite, and their product is not."""
    case = Case("sgd", "none", granularity, 3, "outer")
    bench = made(case, engine)
    grads = copy.deepcopy(case.gradients()[0])
    grads[2].a[1, 0], grads[2].b[1, 0, 1] = 1e200, 1e200
    before = bench.read()
    bench.step(grads)
    moved = [not torch.equal(a, b) for a, b in zip(before["w"], bench.read()["w"], strict=True)]
    assert moved == [True, False, True]
    assert bench.sizes.withheld.tolist() == [0, 1, 0]


# ---- going on ----------------------------------------------------------------------------------


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
        expected.step(list(map(as_dense, mine)))
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


# ---- storage and layout ------------------------------------------------------------------------


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


#: The same numbers, stored otherwise.
LAYOUTS = {
    "turned": lambda g: g.transpose(-1, -2).contiguous().transpose(-1, -2) if g.dim() > 2 else g,
    "with gaps": lambda g: torch.stack([g, g], -1)[..., 0],
    "negated": lambda g: torch._neg_view(-g),
    "with a graph": lambda g: g.clone().requires_grad_() * 1,
    "repeated": lambda g: g[..., :1].expand(g.shape) if g.dim() > 2 else g,
}


@every_engine
@every_granularity
@each_learner
@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_may_be_stored_in_any_way(engine, granularity, learners, layout):
    case = Case("adam", "adam", granularity, learners, "outer" if learners else "dense")
    bench, expected = made(case, engine), twins(case)
    for k, grads in enumerate(case.gradients()[:6]):
        # Every other step, as a program or a plan that was made for one form is kept.
        other = [LAYOUTS[layout](as_dense(g)) if k % 2 else g for g in grads]
        if learners:  # whose gradients are made without graphs
            bench.step([g.detach() if isinstance(g, torch.Tensor) else g for g in other])
        else:
            for p, g in zip(bench.params, other, strict=True):
                p.grad = g[0]
            bench.optimizer.step()
        expected.step([as_dense(g).detach() for g in other])
    assert_alike(bench.read(), expected.read())


# ---- devices and autograd ----------------------------------------------------------------------


class NoReads(TorchDispatchMode):
    """Fails on whatever would wait for a device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func is not torch.ops.aten._local_scalar_dense.default, "read from the device"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("granularity", ["scalar", "layer", "node", "weight", "mixed"])
@each_learner
@pytest.mark.parametrize("meta", ["adam", "none"])
def test_the_accelerators_way_never_reads_from_the_device(granularity, learners, meta):
    case = Case("adam", meta, granularity, learners or 3 * (granularity == "mixed"), "outer")
    bench = made(case, "masked")
    with NoReads():
        for k, grads in enumerate(case.gradients()):
            bench.step(spoilt(grads, 0, 0, math.nan) if k == 5 else grads)
            bench.readings()


@pytest.mark.parametrize("engine", ["masked", compiled])
@every_granularity
@each_learner
def test_the_accelerators_way_keeps_its_tensors(engine, granularity, learners):
    """As a CUDA graph needs: it replays writes to the same places."""
    case = Case("adam", "adam", granularity, learners, "dense")
    bench = made(case, engine)
    grads = case.gradients()
    bench.step(grads[0])
    before = [x.data_ptr() for x in bench.tensors()]
    for each in grads[1:]:
        bench.step(each)
    assert [x.data_ptr() for x in bench.tensors()] == before


@every_engine
@every_granularity
def test_autograd_notices_that_weights_changed(engine, granularity):
    bench = Alone(Case(granularity=granularity), engine)
    loss = sum((p * p).sum() for p in bench.params)
    loss.backward(retain_graph=True)
    bench.optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
