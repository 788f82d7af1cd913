"""GeneralMetaOptimize saved and loaded."""

import io

import pytest
import torch
from definition import MODES, engine, nominal_run

from clmeta.errors import BadArgument


@pytest.mark.parametrize(("approximation", "hessian"), MODES)
def test_a_saved_run_goes_on_bit_for_bit(approximation, hessian):
    samples = 1 if hessian == "diagonal" else None
    mode = {"approximation": approximation, "hessian": hessian, "diagonal_samples": samples}
    first, second = (engine("adamw", "adam", 0.1, **mode) for _ in range(2))
    nominal_run(first)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second.load_state_dict(torch.load(file, weights_only=True))
    for run in (first, second):
        nominal_run(run)
    assert torch.equal(first.beta, second.beta)
    assert torch.equal(first.trace_matrix(), second.trace_matrix())
    assert torch.equal(first.z, second.z)
    assert first.t == second.t == 14


def test_a_saved_state_of_another_mode_is_refused():
    state = engine("sgd", "sgd", 0.0).state_dict()
    with pytest.raises(BadArgument, match="approximation"):
        engine("sgd", "sgd", 0.0, approximation="full").load_state_dict(state)
    with pytest.raises(BadArgument, match="labels"):
        engine("sgd", "sgd", 0.0, blocks="weight", condensed=False).load_state_dict(state)
    with pytest.raises(BadArgument, match="expected the names"):
        engine("adam", "sgd", 0.0).load_state_dict(state)
    with pytest.raises(BadArgument, match="not a state of this class"):
        engine("sgd", "sgd", 0.0).load_state_dict({"t": 1})


def test_a_saved_state_is_a_copy():
    optimiser = engine("adamw", "adam", 0.1)
    state = optimiser.state_dict()
    state["x"][0]["body"].zero_()
    assert optimiser.params["body"].abs().sum() > 0
