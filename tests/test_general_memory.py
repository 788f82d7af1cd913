"""What GeneralMetaOptimize keeps and needs: condensed traces, chunks, limits."""

import pytest
import torch
from definition import MODES, engine, loss, nominal_run, problem

from clmeta.errors import BadArgument
from clmeta.general import APPROXIMATIONS, GeneralMetaOptimize


def test_condensed_trace_costs_one_product_whatever_the_number_of_blocks():
    passes = []

    def counted(*args):
        passes.append(1)
        return loss(*args)

    params, batches = problem()
    for blocks in ("scalar", "tensor", "weight"):
        optimiser = GeneralMetaOptimize(counted, params, blocks=blocks, condensed=True)
        passes.clear()
        optimiser.step(*batches[0])
        assert len(passes) == 1
        assert optimiser.memory_bytes()["kept"] < 8 * 100


@pytest.mark.parametrize("approximation", APPROXIMATIONS)
def test_chunks_change_memory_and_not_the_result(approximation):
    runs = [
        engine("sgdm", "adam", 0.1, blocks="node", approximation=approximation, condensed=False,
               chunk=chunk)
        for chunk in (None, 2)
    ]  # fmt: skip
    for run in runs:
        for batch in problem()[1][:3]:
            run.step(*batch)
    torch.testing.assert_close(runs[0].trace_matrix(), runs[1].trace_matrix())
    assert runs[1].memory_bytes()["step"] < runs[0].memory_bytes()["step"]


@pytest.mark.parametrize("blocks", ["tensor", "weight"])
@pytest.mark.parametrize(("approximation", "hessian"), MODES)
def test_kept_memory_is_what_is_said(approximation, hessian, blocks):
    optimiser = engine(
        "adamw", "adam", 0.1, blocks=blocks, approximation=approximation, hessian=hessian
    )
    nominal_run(optimiser)

    def numbers(tree):
        if isinstance(tree, dict | tuple):
            return sum(map(numbers, tree.values() if isinstance(tree, dict) else tree))
        return tree.numel()

    state = optimiser.state_dict()
    kept = sum(numbers(state[name]) for name in ("x", "y", "X", "Y", "Q"))
    assert optimiser.memory_bytes()["kept"] == 8 * kept


def test_a_mode_that_does_not_fit_is_refused_before_it_is_tried():
    huge = {"w": torch.zeros(2_000_000)}
    for approximation, mend in (("full", "fewer blocks"), ("L", "condensed=True")):
        with pytest.raises(BadArgument, match=f"GiB are available; .*{mend}"):
            GeneralMetaOptimize(
                lambda p: p["w"].sum(), huge, "sgd", "sgd", "weight", approximation=approximation
            )
    GeneralMetaOptimize(lambda p: p["w"].sum(), huge, "sgd", "sgd", "weight", condensed=True)
    with pytest.raises(BadArgument, match="approximation='L': a step would need about"):
        engine("sgd", "sgd", 0.0, memory_limit=100)
