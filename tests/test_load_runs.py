"""Run folders become one frame, and the frame yields the accuracies that a paper reports."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from clmeta.analysis import (
    accuracy_per_task,
    cumulative_accuracy,
    final_accuracy,
    load_runs,
    melt_alphas,
    method_labels,
    summary_table,
)
from clmeta.analysis.load import kept_rows
from clmeta.errors import BadArgument, RunFolderError
from clmeta.ground.names import seed_of
from clmeta.record.recorder import Recorder


def write_run(
    folder: Path, config: dict, tasks: int = 3, length: int = 40, blocks: tuple = ("body", "head")
) -> np.ndarray:
    """A recorded run of random predictions and step sizes; returns what was right at each step."""
    draw = np.random.default_rng([config["seed"], len(blocks)])
    right = draw.random(tasks * length) < 0.5
    with Recorder(folder, blocks, config=config, part_steps=25) as recorder:
        for step, correct in enumerate(right):
            alpha = np.exp(draw.normal(-7, 0.1, len(blocks))).tolist()
            recorder.record(step // length, draw.random(), float(correct), alpha)
            if step % length == length - 1:
                recorder.end_task(step // length, test_accuracy=0.1 * (step // length + 1))
    return right


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for seed in range(3):
        common = {"base": "adamw", "alpha0": 1e-4, "seed": seed, "data_root": f"/place/{seed}"}
        write_run(tmp_path / f"two-{seed}", {**common, "meta": "adam", "blocks": "head"})
        write_run(tmp_path / f"one-{seed}", {**common, "meta": "none"}, blocks=("all",))
    return tmp_path


def test_runs_are_one_tidy_frame_labelled_by_method_and_seed(folder: Path) -> None:
    runs = load_runs(folder)
    assert len(runs) == 6 * 120
    assert sorted(runs["method"].unique()) == ["adamw fixed", "adamw/adam head"]
    assert sorted(runs["seed"].unique()) == [0, 1, 2]
    two = runs[runs["method"] == "adamw/adam head"]
    assert two["alpha.all"].isna().all() and two["alpha.head"].notna().all()
    last_steps = runs[runs["test_accuracy"].notna()]
    assert sorted(last_steps["step"].unique()) == [39, 79, 119]
    np.testing.assert_allclose(last_steps["test_accuracy"], 0.1 * (last_steps["task"] + 1))


def test_runs_are_found_by_folder_and_by_glob_each_once(folder: Path) -> None:
    assert load_runs(folder / "two-*", folder / "two-0")["run"].nunique() == 3
    assert load_runs(folder / "one-1")["seed"].unique().tolist() == [1]


def test_step_sizes_melt_to_a_row_a_block(folder: Path) -> None:
    long = melt_alphas(load_runs(folder))
    assert len(long) == 3 * 120 * 2 + 3 * 120
    blocks = long.groupby("method", observed=True)["block"].unique()
    assert {method: set(names) for method, names in blocks.items()} == {
        "adamw fixed": {"all"},
        "adamw/adam head": {"body", "head"},
    }
    with pytest.raises(BadArgument, match="blocks='tail': no such block; known: "):
        melt_alphas(load_runs(folder), ["tail"])


def test_only_what_is_asked_for_is_loaded(folder: Path) -> None:
    runs = load_runs(folder, columns=["correct"], blocks=["head"])
    keys = ["method", "seed", "run", "step", "task", "steps"]
    assert list(runs.columns) == [*keys, "correct", "alpha.head"]
    with pytest.raises(BadArgument, match="columns='speed'"):
        load_runs(folder, columns=["speed"])
    with pytest.raises(BadArgument, match=r"blocks=\['tail'\]"):
        load_runs(folder, blocks=["tail"])


@pytest.mark.parametrize("every", [7, 1000])
def test_thinning_changes_no_accuracy_and_no_step_size(folder: Path, every: int) -> None:
    runs, thinned = load_runs(folder), load_runs(folder, every=every)
    assert len(thinned) < len(runs) / 3
    pd.testing.assert_frame_equal(
        accuracy_per_task(runs), accuracy_per_task(thinned), check_dtype=False, rtol=1e-6
    )
    pd.testing.assert_frame_equal(final_accuracy(runs), final_accuracy(thinned))
    both = thinned.merge(runs, on=["run", "step"], suffixes=("", "_full"))
    assert len(both) == len(thinned)
    np.testing.assert_array_equal(both["alpha.head"], both["alpha.head_full"])


@given(tasks=st.lists(st.integers(1, 20), min_size=1, max_size=5), every=st.integers(1, 25))
def test_thinning_keeps_the_first_and_last_step_of_each_task(tasks, every) -> None:
    task = np.repeat(np.arange(len(tasks)), tasks)
    kept = set(kept_rows(task, every).tolist())
    ends = np.cumsum(tasks)
    assert {int(end) - 1 for end in ends} <= kept
    assert {int(end) - steps for end, steps in zip(ends, tasks, strict=True)} <= kept
    if every == 1:
        assert len(kept) == len(task)


def test_unfinished_runs_are_skipped_kept_or_refused(folder: Path) -> None:
    (folder / "two-1" / "summary.json").unlink()
    with pytest.warns(UserWarning, match="1 runs did not finish and are skipped: .*two-1"):
        assert load_runs(folder)["run"].nunique() == 5
    assert load_runs(folder, unfinished="keep")["run"].nunique() == 6
    with pytest.raises(RunFolderError, match=r"not finished: .*two-1.*unfinished='keep'"):
        load_runs(folder, unfinished="error")


def test_what_cannot_be_read_is_one_clear_error(folder: Path) -> None:
    with pytest.raises(RunFolderError, match=r"no run at or below .*nowhere"):
        load_runs(folder / "nowhere")
    (folder / "one-0" / "trajectory" / "part-00001.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(RunFolderError, match=r"one-0.*cannot be read"):
        load_runs(folder)


def test_methods_are_labelled_by_the_entries_that_differ() -> None:
    base = {"base": "adamw", "meta": "adam", "blocks": "scalar", "eta": 1e-3, "device": "cpu"}
    configs = [
        {**base, "seed": 0},
        {**base, "seed": 1, "device": "cuda", "resolved": {"parameters": 5}},
        {**base, "seed": 0, "eta": 1e-2, "stream_options": {"tasks": 5}},
        {**base, "seed": 0, "meta": "none"},
        {**base, "seed": 0, "name": "ours"},
    ]
    assert method_labels(configs) == [
        "adamw/adam scalar, eta=0.001",
        "adamw/adam scalar, eta=0.001",
        "adamw/adam scalar, eta=0.01, tasks=5",
        "adamw fixed",
        "ours",
    ]
    assert method_labels(configs[:3], ignore=["eta", "stream_options"]) == ["adamw/adam scalar"] * 3


@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "base": st.sampled_from(["sgd", "adamw"]),
                "meta": st.sampled_from(["none", "adam"]),
                "eta": st.sampled_from([0.001, 0.01]),
                "seed": st.integers(0, 3),
                "model_options": st.dictionaries(st.sampled_from("ab"), st.integers(0, 2)),
                "stream_options": st.dictionaries(st.sampled_from("ab"), st.integers(0, 2)),
            }
        ),
        min_size=1,
        max_size=6,
    )
)
def test_two_runs_share_a_label_if_and_only_if_only_their_seeds_differ(configs) -> None:
    labels = method_labels(configs)
    for one, label in zip(configs, labels, strict=True):
        for other, other_label in zip(configs, labels, strict=True):
            same = {**one, "seed": 0} == {**other, "seed": 0}
            assert (label == other_label) == same


def test_a_runs_own_seed_comes_before_that_of_its_stream() -> None:
    stream = {"tasks": 2, "seed": 7}
    assert seed_of({"stream_options": stream, "seed": 3}) == 3
    assert seed_of({"stream_options": stream}) == 7
    assert seed_of({"stream_options": {"tasks": 2}}) is None


@given(arrays(np.float64, st.integers(1, 50), elements=st.floats(0, 1)))
def test_cumulative_accuracy_is_the_mean_over_all_past_steps(correct) -> None:
    result = cumulative_accuracy(correct)
    for step in range(len(correct)):
        assert result[step] == pytest.approx(correct[: step + 1].mean(), abs=1e-12)


def test_the_loaded_cumulative_accuracy_is_that_of_every_step(tmp_path: Path) -> None:
    right = write_run(tmp_path, {"seed": 5})
    runs = load_runs(tmp_path)
    np.testing.assert_allclose(runs["cumulative_accuracy"], cumulative_accuracy(right), rtol=1e-6)
    per_task = right.reshape(3, 40).mean(axis=1)
    np.testing.assert_allclose(accuracy_per_task(runs)["online_accuracy"], per_task, rtol=1e-6)


def test_the_summary_table_holds_mean_and_interval_by_method_best_first(folder: Path) -> None:
    table = summary_table(load_runs(folder), baseline="adamw fixed")
    finals = final_accuracy(load_runs(folder))
    assert table["accuracy"].is_monotonic_decreasing
    for method, row in table.iterrows():
        values = finals[finals["method"] == method]["final_accuracy"]
        assert row["seeds"] == 3 and row["steps"] == 120
        assert row["accuracy"] == pytest.approx(values.mean())
        width = stats.t.ppf(0.975, 2) * values.std(ddof=1) / math.sqrt(3)
        assert row["high"] - row["accuracy"] == pytest.approx(width)
    gain = table["accuracy"]["adamw/adam head"] - table["accuracy"]["adamw fixed"]
    assert table["gain"]["adamw/adam head"] == pytest.approx(gain)
    assert math.isnan(table["gain"]["adamw fixed"])
