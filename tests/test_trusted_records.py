"""Records can be trusted: nothing bad is taken, and what is not as it was recorded is no record."""

from __future__ import annotations

import json
import math
import re
import shutil
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clmeta.analysis import load_runs
from clmeta.errors import BadArgument, ClmetaError, RunFolderError
from clmeta.record.recorder import Recorder
from clmeta.sweep.best import best

GOOD = {"task": 0, "loss": 0.5, "correct": 1.0, "alpha": [0.1, 0.2]}
NO_NUMBER = ["x", "1", b"1", None, 1j, 10**400, [0.1, 0.2], {}, object(), torch.ones(2)]
NO_NUMBER += [torch.tensor(1j), np.ones(2), torch.empty((), device="meta"), np.array([0.5])]
BAD = {
    "task": [*NO_NUMBER, 0.7, -1, 2**31, True, math.nan],
    "loss": NO_NUMBER,
    "correct": [*NO_NUMBER, 2, -0.5, math.inf],
    "alpha": [
        *[x for x in NO_NUMBER if np.shape(x) != (2,)],
        [0.1],
        {"a": 1},
        [1j, 0],
        ["1"] * 2,
    ],
}
BAD["correct"] = [x for x in BAD["correct"] if not isinstance(x, torch.Tensor) or x.dtype != bool]


def write(folder: Path, steps: int = 40, **config) -> Path:
    with Recorder(folder, ["a", "b"], config={"seed": 0, **config}, part_steps=10) as recorder:
        for step in range(steps):
            recorder.record(step // 20, 0.5, float(step >= 20), [0.1, 0.2])
    return folder


def shown(value):
    """The same in every process."""
    return re.sub(r"0x[0-9a-f]+", "", repr(value))


@pytest.mark.parametrize(
    ("name", "value"),
    [(name, value) for name, values in BAD.items() for value in values],
    ids=shown,
)
def test_a_bad_value_is_refused_where_it_is_given_and_spoils_nothing(tmp_path, name, value):
    with Recorder(tmp_path, ["a", "b"], part_steps=3) as recorder:
        for _ in range(2):
            recorder.record(**GOOD)
            with pytest.raises(BadArgument, match=f"^{name}="):
                recorder.record(**{**GOOD, name: value})
        recorder.record(**GOOD)
    assert len(load_runs(tmp_path)) == 3


@settings(max_examples=30, deadline=None)
@given(st.one_of(st.floats(), st.floats(width=32), st.integers(-(10**300), 10**300)))
def test_every_number_is_taken_as_a_loss_and_is_what_float32_makes_of_it(value):
    with tempfile.TemporaryDirectory() as folder:
        with Recorder(folder, ["a"]) as recorder:
            recorder.record(0, value, 1.0, 0.1)
        with np.errstate(over="ignore"):
            expected = np.float32(float(value))
        np.testing.assert_array_equal(pd.read_parquet(f"{folder}/trajectory")["loss"], [expected])


def test_a_refused_value_does_not_use_up_the_step_sizes_of_the_step(tmp_path):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.5)
    with Recorder(tmp_path, optimizer) as recorder:
        optimizer.step()
        optimizer.param_groups[0]["lr"] = 0.25
        with pytest.raises(BadArgument, match="loss="):
            recorder.record(0, "high")
        recorder.record(0, 0.1)
    assert load_runs(tmp_path)["alpha.group0"].tolist() == [0.5]


# ---- parts -------------------------------------------------------------------------------------


def replaced(part: Path, **columns) -> None:
    frame = pd.read_parquet(part)
    for name, values in columns.items():
        if values is None:
            del frame[name]
        else:
            frame[name] = values
    frame.to_parquet(part)


DAMAGES = {
    "middle lost": (lambda t: (t / "part-00001.parquet").unlink(), "lacks part-00001.parquet"),
    "last lost": (lambda t: (t / "part-00003.parquet").unlink(), "holds 30 steps.*had 40"),
    "all lost": (lambda t: [each.unlink() for each in t.iterdir()], "holds no steps"),
    "folder lost": (shutil.rmtree, "no run at or below|cannot be read"),
    "twice": (
        lambda t: shutil.copy(t / "part-00001.parquet", t / "part-00001 (conflicted copy).parquet"),
        r"part-00001 \(conflicted copy\).parquet, which is no part",
    ),
    "renamed": (
        lambda t: (t / "part-00001.parquet").rename(t / "part-00001-PC.parquet"),
        "part-00001-PC.parquet, which is no part",
    ),
    "moved": (
        lambda t: (t / "part-00003.parquet").rename(t / "part-00005.parquet"),
        "lacks part-00003.parquet, part-00004.parquet",
    ),
    "one for another": (
        lambda t: shutil.copy(t / "part-00001.parquet", t / "part-00002.parquet"),
        "part-00002.parquet does not go on at step 20",
    ),
    "cut short": (
        lambda t: (t / "part-00001.parquet").write_bytes(b"PAR1 no more"),
        "part-00001.parquet cannot be read",
    ),
    "empty": (lambda t: (t / "part-00000.parquet").write_bytes(b""), "part-00000.parquet cannot"),
    "a folder": (
        lambda t: ((t / "part-00001.parquet").unlink(), (t / "part-00001.parquet").mkdir()),
        "lacks part-00001.parquet",
    ),
    "text": (
        lambda t: replaced(t / "part-00001.parquet", loss="high"),
        "part-00001.parquet: column 'loss' is .*string",
    ),
    "doubles": (
        lambda t: replaced(t / "part-00000.parquet", correct=0.5),
        "part-00000.parquet: column 'correct' is double, not float",
    ),
    "without a column": (
        lambda t: replaced(t / "part-00001.parquet", loss=None),
        "part-00001.parquet: column 'loss' is missing",
    ),
    "first without a column": (
        lambda t: replaced(t / "part-00000.parquet", task=None),
        "part-00000.parquet: column 'task' is missing",
    ),
    "without a block": (
        lambda t: replaced(t / "part-00002.parquet", **{"alpha.b": None}),
        "part-00002.parquet: column 'alpha.b' is missing",
    ),
    "with one more": (
        lambda t: replaced(t / "part-00002.parquet", more=np.float32(1)),
        "part-00002.parquet: column 'more' is float, not unknown",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_parts_that_are_not_what_was_recorded_are_an_error_that_names_them(tmp_path, damage):
    do, message = DAMAGES[damage]
    for value in (1, 2):
        write(tmp_path / str(value), alpha0=value)
    do(tmp_path / "1" / "trajectory")
    with pytest.raises(RunFolderError, match=message) as caught:
        load_runs(tmp_path / "1")
    assert "\n" not in str(caught.value)
    if damage != "folder lost":
        with pytest.raises(RunFolderError, match=message):
            best(tmp_path, metric="loss")


@pytest.mark.parametrize("file", ["config.json", "summary.json", "tasks.parquet"])
@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"steps": "x"}', "gone"]
)
def test_damaged_files_of_a_run_are_one_line_that_names_them(tmp_path, file, content):
    for value in (1, 2):
        write(tmp_path / str(value), alpha0=value)
    damaged = tmp_path / "1" / file
    damaged.unlink()
    if content != "gone":
        damaged.write_bytes(content)
    for ask in (
        lambda: load_runs(tmp_path),
        *(
            lambda metric=metric: best(tmp_path, metric=metric)
            for metric in ("cumulative_accuracy", "test_accuracy", "last_task_accuracy", "loss")
        ),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a run without a summary did not finish
            try:
                ask()
            except ClmetaError as error:
                assert "\n" not in str(error)
                assert isinstance(error, BadArgument) or str(damaged.parent) in str(error)


WRONG = [None, "x", [["x"]], {"a": {"b": 1}}, 10**400]


def test_a_config_or_summary_with_anything_in_it_is_read_or_an_error(tmp_path):
    """Each entry in turn replaced by things of another kind, as by somebody else's tool."""
    for value in (1, 2):
        write(tmp_path / str(value), alpha0=value, base="sgd", meta="none", blocks="scalar")
    for name in ("config.json", "summary.json"):
        file = tmp_path / "1" / name
        whole = json.loads(file.read_text())
        for entry in [*whole, "eta", "resolved", "stream_options", "name", "method"]:
            for wrong in WRONG:
                file.write_text(json.dumps({**whole, entry: wrong}))
                for ask in (load_runs, best):
                    try:
                        ask(tmp_path)
                    except ClmetaError as error:
                        assert "\n" not in str(error)
        file.write_text(json.dumps(whole))
