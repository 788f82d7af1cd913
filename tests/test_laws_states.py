"""What every engine keeps to beside the equations, over the table of cases in `laws.py`."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from benches import Alone, made
from laws import Case, assert_alike, dense, twins
from optimizer_parts import compiled, every_engine, every_granularity
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
                expected.step(list(map(dense, grads)), rows=range(last))
            bench.step(grads)
            expected.step(list(map(dense, grads)))
        assert_alike(bench.read(), expected.read())
        name = bench.names[last][bench.owner(last, tensor)]
        assert bench.sizes.withheld.tolist() == [0] * last + [1]
        with pytest.raises(NonFiniteError, match=f"step 4: .* in block '{name}';"):
            bench.sizes.check_finite(bench.names[last], last)


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


# ---- layout ------------------------------------------------------------------------------------


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
        other = [LAYOUTS[layout](dense(g)) if k % 2 else g for g in grads]
        if learners:  # whose gradients are made without graphs
            bench.step([g.detach() if isinstance(g, torch.Tensor) else g for g in other])
        else:
            for p, g in zip(bench.params, other, strict=True):
                p.grad = g[0]
            bench.optimizer.step()
        expected.step([dense(g).detach() for g in other])
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
