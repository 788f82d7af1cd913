"""GeneralMetaOptimize as users meet it: modes, granularity, step sizes, modules, curvature."""

import pytest
import torch
import torch.nn.functional as F
from definition import MODES, engine, loss, nominal_run, problem
from torch import nn

from clmeta.errors import BadArgument
from clmeta.general import GeneralMetaOptimize, functional_loss
from clmeta.general.curvature import hessian_diagonal
from clmeta.rules import Adam

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.mark.parametrize("blocks", ["scalar", "tensor", "node", "weight", {"a": "body", "b": "*"}])
@pytest.mark.parametrize(("approximation", "hessian"), MODES)
def test_every_mode_works_at_every_granularity(approximation, hessian, blocks):
    optimiser = engine("adamw", "adam", 0.1, blocks=blocks, approximation=approximation,
                       hessian=hessian)  # fmt: skip
    nominal_run(optimiser)
    m = {"scalar": 1, "tensor": 2, "node": 5, "weight": 8}.get(str(blocks), 2)
    assert optimiser.beta.shape == (m,)
    assert optimiser.trace_matrix().shape == (8, m)
    assert len(optimiser.labels) == m
    assert set(optimiser.step_sizes()) == set(optimiser.block_names)
    assert (optimiser.beta != optimiser.beta[0]).any() or m == 1


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_types_and_devices_are_kept(dtype, device):
    params, batches = problem()
    place = {"dtype": dtype, "device": device}
    params = {n: p.to(**place) for n, p in params.items()}
    optimiser = GeneralMetaOptimize(loss, params, "adamw", "adam", "tensor", approximation="full")
    for x, y in batches:
        value = optimiser.step(x.to(**place), y.to(**place))
    for each in (value, optimiser.beta, optimiser.trace_matrix(), *optimiser.params.values()):
        assert each.dtype == dtype
        assert each.device.type == device


@pytest.mark.parametrize("hessian", ["diagonal", "free"])
@pytest.mark.parametrize("blocks", ["tensor", "weight"])
def test_condensed_trace_is_exact_where_blocks_do_not_mix(hessian, blocks):
    runs = [
        engine("adamw", "adam", 0.1, blocks=blocks, hessian=hessian, condensed=condensed)
        for condensed in (True, False)
    ]
    for run in runs:
        nominal_run(run)
    torch.testing.assert_close(runs[0].beta, runs[1].beta)
    torch.testing.assert_close(runs[0].trace_matrix(), runs[1].trace_matrix())


def test_2x2_and_l_coincide_without_the_hessian():
    runs = [engine("adamw", "adam", 0.1, hessian="free", approximation=a) for a in ("2x2", "L")]
    for run in runs:
        nominal_run(run)
    torch.testing.assert_close(runs[0].beta, runs[1].beta)


def test_step_sizes_stay_within_bounds():
    optimiser = engine("sgd", "adam", 0.0, eta=1.0, alpha_min=0.04, alpha_max=0.06)
    nominal_run(optimiser)
    assert all(0.04 <= a <= 0.06000001 for a in optimiser.step_sizes().values())
    assert any(a == pytest.approx(0.04) or a == pytest.approx(0.06)
               for a in optimiser.step_sizes().values())  # fmt: skip


def test_first_step_sizes_may_differ_by_block():
    optimiser = engine("sgd", "sgd", 0.0, alpha0={"body": 0.1, "head": 0.01})
    sizes = {"body": pytest.approx(0.1), "head": pytest.approx(0.01)}
    assert optimiser.step_sizes() == sizes


def test_fixed_step_sizes_stay_and_are_still_judged():
    optimiser = engine(Adam(), "none", 0.1, approximation="2x2")
    nominal_run(optimiser)
    assert optimiser.step_sizes()["body"] == pytest.approx(0.05)
    assert optimiser.z.abs().sum() > 0


def test_a_module_is_learned_through_its_functional_form():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    model[0].bias.requires_grad_(False)
    x, y = torch.randn(16, 3), torch.randint(2, (16,))
    before = F.cross_entropy(model(x), y).item()
    criterion, params = functional_loss(model, F.cross_entropy)
    assert "0.bias" not in params
    optimiser = GeneralMetaOptimize(criterion, params, blocks="layer", alpha0=0.01)
    first = optimiser.step(x, y)
    for _ in range(30):
        optimiser.step(x, y)
    assert float(first) == pytest.approx(before)
    assert F.cross_entropy(model(x), y).item() == before
    optimiser.copy_to(model)
    assert F.cross_entropy(model(x), y).item() < before
    with pytest.raises(BadArgument, match="no parameter"):
        optimiser.copy_to(nn.Linear(2, 2))


def test_parameters_are_copied():
    params, batches = problem()
    kept = {n: p.clone() for n, p in params.items()}
    GeneralMetaOptimize(loss, params).step(*batches[0])
    assert all(torch.equal(params[n], kept[n]) for n in params)


@pytest.mark.parametrize(("approximation", "hessian"), MODES)
def test_a_sum_whose_gradient_is_one_number_spread_out_is_a_loss_like_others(
    approximation, hessian
):
    params = {"w": torch.ones(3, dtype=torch.float64)}
    optimiser = GeneralMetaOptimize(
        lambda p: 2 * p["w"].sum(), params, "sgd", alpha0=0.1, eta=0.0,
        approximation=approximation, hessian=hessian,
    )  # fmt: skip
    for _ in range(2):
        optimiser.step()
    assert optimiser.params["w"].tolist() == pytest.approx([1 - 2 * 0.2] * 3)


# --- curvature ------------------------------------------------------------------------------


def test_diagonal_is_the_hessians():
    params, batches = problem()
    flat = torch.cat([p.flatten() for p in params.values()])

    def of_vector(v):
        return loss({"body": v[:6].reshape(3, 2), "head": v[6:]}, *batches[0])

    expected = torch.func.hessian(of_vector)(flat).diagonal()
    for chunk in (3, 64):
        diagonal = hessian_diagonal(loss, params, batches[0], chunk=chunk)
        actual = torch.cat([d.flatten() for d in diagonal.values()])
        torch.testing.assert_close(actual, expected)
    generator = torch.Generator().manual_seed(0)
    sampled = hessian_diagonal(loss, params, batches[0], samples=4000, generator=generator)
    actual = torch.cat([d.flatten() for d in sampled.values()])
    torch.testing.assert_close(actual, expected, rtol=0.1, atol=0.2)


def test_sampled_diagonal_repeats_with_its_seed():
    runs = [
        engine("sgd", "sgd", 0.0, hessian="diagonal", diagonal_samples=2, seed=s) for s in (1, 1, 2)
    ]
    for run in runs:
        nominal_run(run)
    assert torch.equal(runs[0].trace_matrix(), runs[1].trace_matrix())
    assert not torch.equal(runs[0].trace_matrix(), runs[2].trace_matrix())
