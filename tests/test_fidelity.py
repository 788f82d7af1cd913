"""What a fidelity study promises: one run for all modes, true references, scores that mean it."""

import numpy as np
import pytest
import torch
from torch import Tensor

from clmeta.analysis.fidelity import MODES, Fidelity, fidelity, fidelity_grid, score
from clmeta.analysis.fidelity_plot import plot_fidelity, plot_fidelity_panels
from clmeta.analysis.forward_view import forward_view, suggested_horizon
from clmeta.errors import BadArgument
from clmeta.general import GeneralMetaOptimize

STEPS = 16
ALL = "all"


def curved(params: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
    hidden = torch.tanh(x @ params["body"])
    return ((hidden @ params["head"] - y) ** 2).mean()


def linear(params: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
    return (x @ params["body"] @ y[:2]).mean() + params["head"] @ y[2:]


def separable(params: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
    shift = x.mean(0)[:, None]
    return ((params["body"] - shift) ** 4).sum() + ((params["head"] - y.mean()) ** 2).sum()


def problem(steps: int = STEPS) -> tuple[dict[str, Tensor], list[tuple[Tensor, Tensor]]]:
    generator = torch.Generator().manual_seed(5)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    params = {"body": 0.5 * normal(3, 2), "head": normal(2)}
    return params, [(normal(4, 3), normal(4)) for _ in range(steps)]


SETTINGS = {
    "base": "adamw",
    "meta": "sgd",
    "blocks": "tensor",
    "alpha0": 0.02,
    "eta": 0.05,
    "gamma": 0.9,
    "weight_decay": 0.1,
}


def study(loss=curved, steps=STEPS, **options) -> Fidelity:
    params, batches = problem(steps)
    return fidelity(loss, params, batches, **{**SETTINGS, **options})


def by_mode(scores, block=ALL):
    return scores[scores["block"] == block].set_index("mode")


def test_a_mode_against_itself_has_cosine_one_every_sign_and_no_bias(monkeypatch):
    monkeypatch.setitem(MODES._entries, "exact again", MODES.get("full/exact"))
    row = by_mode(study(modes=["full/exact", "exact again"]).scores()).loc["exact again"]
    assert row["cosine"] == pytest.approx(1, abs=1e-12)
    assert (row["sign"], row["bias"]) == (1, 0)


@pytest.mark.parametrize("base", ["sgd", "adamw"])
def test_every_mode_is_exact_where_the_loss_has_no_curvature_and_beta_does_not_move(base):
    table = by_mode(study(linear, base=base, eta=0.0).scores())
    assert set(table.index) == set(MODES.names()) - {"full/exact"}
    np.testing.assert_allclose(table[["cosine", "sign"]], 1, atol=1e-10)
    np.testing.assert_allclose(table["bias"], 0, atol=1e-10)


def test_the_diagonal_is_exact_where_weights_do_not_interact_and_free_is_not():
    table = by_mode(study(separable, eta=0.0, base="sgd").scores())
    for mode in ("L/diagonal", "L/diagonal sampled", "L/exact", "L/exact condensed"):
        assert table.loc[mode, "bias"] == pytest.approx(0, abs=1e-10)
    assert table.loc["L/free", "bias"] > 0.05


def test_condensed_trace_has_the_right_total_but_credits_blocks_differently():
    run = study(modes=["L/exact", "L/exact condensed"], base="sgd", meta="none", alpha0=0.1)
    full, condensed = run.z["L/exact"], run.z["L/exact condensed"]
    np.testing.assert_allclose(condensed.sum(1), full.sum(1), rtol=1e-10)
    assert np.abs(condensed - full).max() > 1e-3 * np.abs(full).max()


def test_all_modes_see_the_run_that_the_driver_makes():
    params, batches = problem()
    alone = GeneralMetaOptimize(
        curved, params, **SETTINGS, approximation="L", hessian="exact", condensed=False
    )
    losses, betas, z = [], [], []
    for batch in batches:
        betas.append(alone.beta.numpy())
        losses.append(float(alone.step(*batch)))
        z.append(alone.z.numpy())
    run = study(driver="L/exact", modes=["full/exact", "L/exact"])
    np.testing.assert_array_equal(run.loss, losses)
    np.testing.assert_array_equal(run.beta, betas)
    np.testing.assert_array_equal(run.z["L/exact"], z)
    assert not np.allclose(study(driver="L/free", modes=[]).beta, betas)


def test_a_mode_scores_the_same_whoever_else_is_studied():
    alone = study(modes=["L/free"]).z["L/free"]
    together = study(modes=["2x2/exact", "full/exact", "L/free"]).z["L/free"]
    np.testing.assert_array_equal(alone, together)


def test_scores_do_not_depend_on_the_unit_of_the_loss_when_the_base_update_is_sign_like():
    options = {"meta": "none", "modes": ["full/exact", "L/exact condensed", "L/free"]}
    one = study(**options).scores()
    ten = study(lambda *a: 10 * curved(*a), **options).scores()
    np.testing.assert_allclose(one[["cosine", "bias"]], ten[["cosine", "bias"]], rtol=1e-5)


# The forward view.


def test_backward_and_forward_view_have_the_same_total_over_a_run():
    run = study(modes=["L/exact"], forward=("frozen",))
    table = run.scores("forward/frozen", sums=STEPS)
    np.testing.assert_allclose(table["bias"], 0, atol=1e-11)
    assert run.scores("forward/frozen", sums=1)["cosine"].min() < 0.99  # but not step by step


def test_with_gamma_one_all_weight_is_on_the_first_step_and_the_total_still_agrees():
    run = study(modes=["L/exact"], forward=("frozen",), gamma=1.0)
    view = run.z["forward/frozen"]
    assert np.all(view[1:] == 0)
    np.testing.assert_allclose(view[0], run.z["L/exact"].sum(0), rtol=1e-10)


def discounted(engine, batches, gamma, hold=None) -> float:
    """(1 - gamma) sum of discounted losses after the next step; ``hold`` replaces beta's path."""
    total = 0.0
    for k, batch in enumerate(batches):
        if hold is not None:
            state = engine.state_dict()
            state["y"]["beta"] = hold[k]
            engine.load_state_dict(state)
        value = float(engine.step(*batch))
        total += (1 - gamma) * gamma ** (k - 1) * value if k else 0.0
    return total


@pytest.mark.parametrize("meta_rule", ["sgd", "adam"])
@pytest.mark.parametrize("driver", ["L/free", "L/exact"])
@pytest.mark.parametrize("view", ["frozen", "live"])
def test_forward_view_is_the_finite_difference_of_its_definition(view, driver, meta_rule):
    steps, eps = 9, 1e-5
    params, batches = problem(steps)
    settings = {**SETTINGS, "meta": meta_rule, **MODES.get(driver)}
    run = study(modes=[driver], driver=driver, steps=steps, forward=view, meta=meta_rule)
    engine = GeneralMetaOptimize(curved, params, **settings)
    states = []
    for batch in batches:
        states.append(engine.state_dict())
        engine.step(*batch)
    for t in (1, 4):
        for j in range(2):
            ends = []
            for sign in (1, -1):
                shift = torch.zeros(2, dtype=torch.float64)
                shift[j] = sign * eps
                start = {**states[t], "y": {**states[t]["y"]}}
                start["y"]["beta"] = states[t]["y"]["beta"] + shift
                engine.load_state_dict(start)
                hold = [s["y"]["beta"] + shift for s in states[t:]] if view == "frozen" else None
                ends.append(discounted(engine, batches[t:], 0.9, hold))
            expected = (ends[0] - ends[1]) / (2 * eps)
            assert run.z[f"forward/{view}"][t, j] == pytest.approx(expected, rel=1e-5)


def test_full_becomes_the_live_forward_view_as_eta_goes_to_zero():
    errors = []
    for eta in (1e-1, 1e-2, 1e-3):
        run = study(modes=["full/exact"], eta=eta, forward=("live",))
        errors.append(by_mode(run.scores("forward/live", sums=STEPS))["bias"].abs().iloc[0])
    assert errors[0] > 5 * errors[1] > 25 * errors[2]
    assert errors[2] < 1e-3


def test_a_horizon_cuts_what_is_far_ahead_and_a_long_one_changes_nothing():
    params, batches = problem()
    engine = GeneralMetaOptimize(curved, params, **SETTINGS, hessian="free")
    states = []
    for batch in batches:
        states.append(engine.state_dict())
        engine.step(*batch)
    whole = forward_view(engine, curved, states, batches)
    blocks = forward_view(engine, curved, states, batches, horizon=STEPS, block=5)
    near = forward_view(engine, curved, states, batches, horizon=1, block=1)
    torch.testing.assert_close(blocks, whole)
    # One step ahead: -(1 - gamma) alpha <u + kappa w, grad f_{t+1}(w_{t+1})> in each block.
    t = 3
    before, after = states[t]["x"][0], states[t + 1]["x"][0]
    g = torch.func.grad(curved)(after, *batches[t + 1])
    expected = [0.1 * float(((after[n] - before[n]) * g[n]).sum()) for n in params]
    np.testing.assert_allclose(near[t].numpy(), expected, rtol=1e-10)
    assert 0.9 ** suggested_horizon(0.9) <= 0.01 < 0.9 ** (suggested_horizon(0.9) - 1)


# Numbers and pictures.


def test_scores_mean_what_they_say():
    r = np.array([1.0, -2.0, 4.0])
    assert score(3 * r, r) == pytest.approx({"cosine": 1, "sign": 1, "bias": 2})
    assert score(-r, r) == pytest.approx({"cosine": -1, "sign": 0, "bias": -2})
    assert score(0 * r, r)["bias"] == -1
    assert score(1e300 * r, 1e300 * r)["cosine"] == pytest.approx(1)
    assert np.isnan(score(r, 0 * r)["cosine"])
    assert np.isnan(score(np.array([1, np.nan]), np.array([1.0, 2.0]))["bias"])
    assert score(np.array([1, 7.0]), np.array([1.0, np.nan]))["bias"] == 0


def test_windows_and_sums_cut_the_run_where_they_say():
    run = study(modes=["full/exact", "L/free"])
    assert run.scores(window=8)["start"].unique().tolist() == [0, 8]
    part = by_mode(run.scores(window=8).query("start == 8"))
    expected = score(run.z["L/free"][8:16].ravel(), run.z["full/exact"][8:16].ravel())
    assert part.loc["L/free", "bias"] == pytest.approx(expected["bias"])


def test_a_mode_that_diverges_is_left_behind_and_the_run_goes_on():
    # Steps far beyond what the curvature allows: only the trace that feels it explodes.
    def steep(params, x, y):
        return 1e3 * (torch.cos(params["body"]).sum() + torch.cos(params["head"]).sum())

    run = study(
        steep, modes=["L/exact", "L/free"], base="sgd", meta="none", alpha0=1e20, weight_decay=0.0
    )
    failed = run.cost.set_index("mode")["failed_at"]
    assert failed["L/free"] == -1
    assert 0 < failed["L/exact"] < STEPS
    assert np.isnan(run.z["L/exact"][failed["L/exact"] :]).all()
    assert np.isfinite(run.z["L/exact"][: failed["L/exact"]]).all()
    table = run.scores("L/free", window=4)
    finite = table[table["block"] == ALL]["cosine"].notna()
    assert finite.iloc[0]
    assert not finite.iloc[-1]


def test_costs_are_measured_and_ordered():
    cost = study(modes=["full/exact", "L/exact", "L/free"]).cost.set_index("mode")
    assert (cost["ms"] > 0).all()
    for column in ("peak_bytes", "kept_bytes"):
        assert cost.loc["full/exact", column] > cost.loc["L/exact", column]
        assert cost.loc["L/exact", column] > cost.loc["L/free", column]


def test_grid_has_a_run_for_every_eta_and_gamma_and_can_be_drawn():
    params, batches = problem(6)
    options = {k: v for k, v in SETTINGS.items() if k not in ("eta", "gamma")}
    options["modes"] = ["full/exact", "2x2/exact", "L/free"]
    table = fidelity_grid(curved, params, batches, etas=(0.001, 0.1), gammas=(0, 0.9), **options)
    assert table.groupby(["eta", "gamma"]).ngroups == 4
    free = table[(table["mode"] == "2x2/exact") & (table["block"] == ALL)].set_index("eta")["bias"]
    assert free[0.001].abs().max() < free[0.1].abs().max()
    axes = plot_fidelity(table, x="eta", measure="bias")
    assert len(axes.get_lines()) == 3  # all but the reference, and a zero line
    run = study(modes=options["modes"], steps=6)
    parts = {"eta": table, "gamma": table, "time": run.scores(window=3)}
    figure = plot_fidelity_panels({"one": parts, "two": parts}, switches=[3])
    figure.canvas.draw()
    assert len(figure.axes) == 8


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"modes": ["L/exakt"]}, "modes"),
        ({"forward": "backward"}, "meta"),
        ({"driver": "2x2/exact", "forward": "live"}, "meta"),
        ({"hessian": "free"}, "hessian"),
        ({"horizon": 0, "forward": "frozen"}, "horizon"),
    ],
)
def test_what_cannot_be_studied_is_refused_by_name(options, named):
    with pytest.raises(BadArgument, match=named):
        study(steps=3, **options)


def test_scores_refuse_what_the_run_does_not_have():
    run = study(modes=["L/free"], steps=4)
    for wrong in ({"against": "full/exact"}, {"against": "L/free", "sums": 5}):
        with pytest.raises(BadArgument):
            run.scores(**wrong)
    with pytest.raises(BadArgument, match="measure"):
        plot_fidelity(study(modes=["full/exact", "L/free"], steps=4).scores(), measure="angle")
