"""What GeneralMetaOptimize refuses, and what it withholds."""

import math

import pytest
import torch
import torch.nn.functional as F
from definition import MODES, engine, nominal_run, problem

from clmeta.errors import BadArgument, NonFiniteError
from clmeta.general import GeneralMetaOptimize


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"approximation": "LL"}, "approximation='LL': must be one of full, 2x2, L"),
        ({"hessian": "gauss"}, "hessian='gauss': must be one of exact, diagonal, free"),
        ({"approximation": "full", "condensed": True}, "one vector per weight cannot hold"),
        ({"rectify": True}, "use hessian='diagonal'"),
        ({"rectify": True, "hessian": "diagonal", "approximation": "full"}, "not differentiated"),
        ({"meta_first": True, "approximation": "2x2"}, "approximation='L'"),
        ({"diagonal_samples": 3}, "only hessian='diagonal'"),
        ({"diagonal_samples": 0, "hessian": "diagonal"}, "diagonal_samples=0: must be a wh"),
        ({"gamma": 1.5}, "gamma=1.5: a discount"),
        ({"eta": -1.0}, "eta=-1.0"),
        ({"alpha0": 0.0}, "alpha0=0.0: learned, it must start strictly between"),
        ({"alpha0": {"body": 0.1}}, "one value per block: body, head"),
        ({"alpha_min": 1.0, "alpha_max": 0.1}, "must lie below alpha_max"),
        ({"chunk": 0}, "chunk=0"),
        ({"blocks": "layers"}, "did you mean 'layer'"),
    ],
)
def test_bad_arguments_are_named_with_the_mend(options, message):
    with pytest.raises(BadArgument, match=message):
        optimiser = engine("sgd", "sgd", 0.0, **options)
        optimiser.step(*problem()[1][0])


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({}, "at least one tensor"),
        ([torch.zeros(2)], "a dict from name to tensor"),
        ({"w": torch.zeros(2, dtype=torch.int64)}, "real floating-point"),
        ({"v": torch.zeros(2), "w": torch.zeros(2).double()}, "like the first"),
        ({"w": torch.zeros(0)}, "leave empty tensors out"),
    ],
)
def test_bad_parameters_are_refused(params, message):
    with pytest.raises(BadArgument, match=message):
        GeneralMetaOptimize(lambda p: p["w"].sum(), params)


@pytest.mark.parametrize("function", [F.mse_loss, F.huber_loss])
def test_losses_of_which_torch_lacks_a_derivative(function):
    """Two derivatives are enough for all modes but one, which says what to do."""
    params, batch = {"w": torch.randn(3, 2)}, (torch.randn(4, 3), torch.randn(4, 2))

    def criterion(params, x, y):
        return function(x @ params["w"], y)

    for approximation, hessian in MODES:
        mode = {"approximation": approximation, "hessian": hessian}
        optimiser = GeneralMetaOptimize(criterion, params, "adamw", "adam", **mode)
        if (approximation, hessian) != ("full", "exact"):
            optimiser.step(*batch)
            continue
        with pytest.raises(BadArgument, match="no third derivative of this loss"):
            optimiser.step(*batch)


def test_curvature_that_is_not_finite_withholds_the_update():
    """|w|^1.5 has gradient 0 and infinite curvature at 0."""

    def spiked(params, scale):
        return (scale * params["w"].abs() ** 1.5).sum()

    params = {"w": torch.tensor([1.0, 1.0])}
    optimiser = GeneralMetaOptimize(spiked, params, "sgd", "sgd", alpha0=0.1)
    optimiser.step(1.0)
    state = optimiser.state_dict()
    state["x"][0]["w"].zero_()
    optimiser.load_state_dict(state)
    with pytest.raises(NonFiniteError, match=r"step 1: the curvature .* withheld"):
        optimiser.step(1.0)
    assert optimiser.t == 1
    assert torch.equal(optimiser.beta, state["y"]["beta"])
    assert torch.equal(optimiser.trace_matrix()[:, 0], state["X"][0]["w"][0])


def test_a_loss_that_is_not_finite_withholds_the_update():
    optimiser = engine("adamw", "adam", 0.1)
    with pytest.raises(NonFiniteError, match="step 0: the loss is not finite"):
        optimiser.step(torch.full((4, 3), math.nan, dtype=torch.float64), problem()[1][0][1])
    nominal_run(optimiser)
