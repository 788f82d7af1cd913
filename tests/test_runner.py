"""One run from its config."""

from __future__ import annotations

import pandas as pd
import pytest
import torch
from runner_parts import SMALL, small, trajectory

from clmeta.errors import NonFiniteError, RunFolderError
from clmeta.ground.seeds import derive_seed
from clmeta.record.runfolder import RunFolder
from clmeta.runs.config import RunConfig
from clmeta.runs.runner import numerics, prepare, run


def test_a_run_leaves_a_complete_folder(tmp_path):
    result = run(SMALL, tmp_path / "run")
    rows = trajectory(tmp_path / "run")
    blocks = ["alpha.hidden.0", "alpha.output"]
    assert list(rows.columns) == ["step", "task", "loss", "correct", *blocks]
    assert rows["step"].tolist() == list(range(60))
    assert rows["task"].tolist() == [0] * 30 + [1] * 30
    assert (rows[blocks].iloc[0] - 1e-3).abs().max() < 1e-9
    summary = RunFolder(tmp_path / "run").summary
    assert summary["cumulative_accuracy"] == pytest.approx(rows["correct"].mean())
    assert summary["cumulative_accuracy"] == pytest.approx(result.online.accuracy)
    assert summary["mean_test_accuracy"] == pytest.approx(sum(result.online.test_accuracy) / 2)
    config = RunFolder(tmp_path / "run").config
    assert config["method"] == "adamw/adam layer"
    assert config["resolved"]["blocks"] == {"hidden.0": 8 * 65, "output": 10 * 9}
    assert config["resolved"]["stream"]["boundaries"] == [0, 30]


def test_a_run_is_repeated_exactly_from_its_folder(tmp_path):
    config = small(
        base="rmsprop",
        base_options={"lam": 0.99},
        meta="lion",
        blocks={"first": ["hidden"], "rest": "*"},
        weight_decay=0.01,
        seed=3,
        stream_options={"tasks": 2, "steps_per_task": 30, "augment": "crop-flip", "repeats": 2},
    )
    run(config, tmp_path / "one")
    again = RunConfig.from_file(tmp_path / "one" / "config.json")
    assert again == config
    run(again, tmp_path / "two")
    pd.testing.assert_frame_equal(trajectory(tmp_path / "one"), trajectory(tmp_path / "two"))


def test_paired_runs_see_the_same_data_from_the_same_weights():
    one = prepare(small(seed=4))
    two = prepare(small(seed=4, base="lion", meta="none", alpha0=0.1, blocks="scalar"))
    mine, its = one.model.state_dict(), two.model.state_dict()
    assert all(torch.equal(mine[key], its[key]) for key in mine)
    for (x, y, task, step), other in zip(one.stream, two.stream, strict=True):
        assert torch.equal(x, other[0])
        assert torch.equal(y, other[1])
        assert (task, step) == other[2:]


def test_the_network_can_keep_its_weights_while_the_data_changes():
    one, two = prepare(small(seed=4)), prepare(small(seed=5))
    same = prepare(small(seed=4, stream_options={"tasks": 2, "steps_per_task": 30, "seed": 5}))
    weight = "output.weight"
    assert torch.equal(same.model.state_dict()[weight], one.model.state_dict()[weight])
    assert not torch.equal(two.model.state_dict()[weight], one.model.state_dict()[weight])
    assert torch.equal(next(iter(same.stream))[0], next(iter(two.stream))[0])


def test_seeds_of_different_purposes_differ():
    seeds = {derive_seed(seed, what) for seed in range(50) for what in ("model", "training")}
    assert len(seeds) == 100
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_a_run_leaves_the_process_as_it_was(tmp_path):
    threads = torch.get_num_threads()
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    run(small(threads=2), tmp_path / "run")
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.rand(3), expected)


def test_subnormal_numbers_are_flushed_in_a_run_and_the_callers_setting_comes_back():
    tiny = torch.tensor([1e-38])
    before = bool(tiny * 0.1)
    with numerics(threads=1):
        assert not torch.any(tiny * 0.1)
    assert bool(tiny * 0.1) is before


def test_a_finished_run_is_not_replaced_by_accident(tmp_path):
    run(SMALL, tmp_path / "run")
    before = trajectory(tmp_path / "run")
    with pytest.raises(RunFolderError, match="holds a finished run"):
        run(small(seed=1), tmp_path / "run")
    pd.testing.assert_frame_equal(trajectory(tmp_path / "run"), before)
    run(small(seed=1), tmp_path / "run", overwrite=True)
    assert not trajectory(tmp_path / "run").equals(before)


def test_an_interrupted_run_keeps_every_step(tmp_path):
    def stop(progress):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), pytest.MonkeyPatch.context() as patch:
        patch.setattr("clmeta.strategies.plain.REPORT_EVERY", 0.0)
        run(SMALL, tmp_path / "run", on_progress=stop)
    assert len(trajectory(tmp_path / "run")) == 1
    assert not RunFolder(tmp_path / "run").finished


def test_a_diverging_run_says_where_and_keeps_what_led_to_it(tmp_path):
    config = small(meta="none", base="sgd", alpha0=1e18, weight_decay=1.0)
    with pytest.raises(NonFiniteError, match="step"):
        run(config, tmp_path / "run")
    assert not RunFolder(tmp_path / "run").finished
    assert len(trajectory(tmp_path / "run")) > 1


def test_any_torch_optimiser_is_a_base(tmp_path):
    wrapped = small(base="torch.optim:AdamW", base_options={"eps": 1e-8}, blocks="scalar")
    run(wrapped, tmp_path / "run")
    assert trajectory(tmp_path / "run")["alpha.all"].nunique() > 1
