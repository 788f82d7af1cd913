"""GeneralMetaOptimize as users meet it: modes, granularity, rules of their own, saving, errors."""

import io
import itertools
import math
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from definition import engine, loss, nominal_run, problem
from torch import nn

from clmeta.curvature import hessian_diagonal
from clmeta.errors import BadArgument, NonFiniteError
from clmeta.general import APPROXIMATIONS, HESSIANS, GeneralMetaOptimize, functional_loss
from clmeta.rules import SGD, Adam, Rule

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
MODES = list(itertools.product(APPROXIMATIONS, HESSIANS))


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


def test_2x2_and_l_coincide_without_the_hessian():
    runs = [engine("adamw", "adam", 0.1, hessian="free", approximation=a) for a in ("2x2", "L")]
    for run in runs:
        nominal_run(run)
    torch.testing.assert_close(runs[0].beta, runs[1].beta)


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


# ---- curvature ---------------------------------------------------------------------------


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


# ---- rules of the user's own -------------------------------------------------------------


@dataclass(frozen=True)
class Normalised(Rule):
    """u = g / sqrt(1 + mean g^2): mixes the weights of a tensor."""

    strength: float = 1.0

    def update(self, g, state, t):
        return g / torch.sqrt(1 + self.strength * (g * g).mean()), state


@dataclass(frozen=True)
class Rounded(Rule):
    """A direction without derivative that does not say so."""

    def update(self, g, state, t):
        return torch.sign(g), state


@dataclass(frozen=True)
class Outside(Rule):
    """A direction that is computed outside torch."""

    def update(self, g, state, t):
        return torch.from_numpy(g.numpy() * 2), state


@dataclass(frozen=True)
class Counting(Rule):
    """State that is not of floating point."""

    def init(self, like):
        return {"n": torch.zeros((), dtype=torch.int64)}

    def update(self, g, state, t):
        return g, {"n": state["n"] + 1}


@pytest.mark.parametrize("approximation", APPROXIMATIONS)
def test_a_users_rule_works_at_both_levels_unchanged(approximation):
    optimiser = engine(
        Normalised(), Normalised(), 0.0, approximation=approximation,
        learn={"alpha": "exp", "strength": "exp"},
    )  # fmt: skip
    nominal_run(optimiser)
    values = optimiser.meta_parameters()
    assert (values["alpha"] != 0.05).all()
    assert (values["strength"] != 1.0).all()


@pytest.mark.parametrize(
    ("base", "meta", "options", "message"),
    [
        (Rounded(), SGD(), {}, "base=.*derivative zero by the gradient"),
        (SGD(), Rounded(), {"approximation": "2x2"}, "meta=.*derivative zero"),
        (Outside(), SGD(), {}, "base=.*torch cannot differentiate Outside"),
        (Counting(), SGD(), {}, "Counting's state 'n' must be of floating point"),
        (Normalised(), SGD(), {"learn": "strength"}, "say its range"),
    ],
)
def test_rules_that_cannot_be_differentiated_are_refused(base, meta, options, message):
    with pytest.raises(BadArgument, match=message):
        engine(base, meta, 0.0, **options)


def test_a_rule_without_derivative_is_welcome_where_none_is_needed():
    nominal_run(engine(Rounded(), Rounded(), 0.0, hessian="free"))


# ---- modules, saving ---------------------------------------------------------------------


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


# ---- memory ------------------------------------------------------------------------------


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


# ---- bad input ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"approximation": "LL"}, "approximation='LL': one of full, 2x2, L"),
        ({"hessian": "gauss"}, "hessian='gauss': one of exact, diagonal, free"),
        ({"approximation": "full", "condensed": True}, "one vector per weight cannot hold"),
        ({"rectify": True}, "use hessian='diagonal'"),
        ({"rectify": True, "hessian": "diagonal", "approximation": "full"}, "not differentiated"),
        ({"meta_first": True, "approximation": "2x2"}, "approximation='L'"),
        ({"diagonal_samples": 3}, "only hessian='diagonal'"),
        ({"diagonal_samples": 0, "hessian": "diagonal"}, "at least one"),
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


def test_parameters_are_copied():
    params, batches = problem()
    kept = {n: p.clone() for n, p in params.items()}
    GeneralMetaOptimize(loss, params).step(*batches[0])
    assert all(torch.equal(params[n], kept[n]) for n in params)


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


def test_fixed_step_sizes_stay_and_are_still_judged():
    optimiser = engine(Adam(), "none", 0.1, approximation="2x2")
    nominal_run(optimiser)
    assert optimiser.step_sizes()["body"] == pytest.approx(0.05)
    assert optimiser.z.abs().sum() > 0


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
