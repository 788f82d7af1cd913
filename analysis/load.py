"""Run folders into one tidy frame: a row a step and run, labelled by method and seed."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from clmeta.errors import RunFolderError, bad, require
from clmeta.ground.checks import texts, whole
from clmeta.ground.names import method_labels, seed_of
from clmeta.record.find import find_runs
from clmeta.record.runfolder import RunFolder

ALPHA = "alpha."
MEASURED = ("loss", "correct", "cumulative_accuracy", "test_accuracy")


def load_runs(
    *folders: str | os.PathLike[str],
    every: int = 1,
    columns: Sequence[str] | None = None,
    blocks: Iterable[str] | None = None,
    unfinished: str = "skip",
    ignore: Iterable[str] = (),
) -> pd.DataFrame:
    """Any number of runs as one frame.

    Columns: ``method``, ``seed``, ``run`` (folder), ``step``, ``task``, ``steps`` (how many steps
    the row stands for), ``loss``, ``correct``, ``cumulative_accuracy``, ``test_accuracy`` (at the
    last step of a task where it was measured, else NaN), ``alpha.<block>`` (NaN for runs without
    that block). Use `melt_alphas` for a row a block.

    Args:
        folders: run folders, folders of run folders, or globs of either.
        every: keep one row in so many, counted from the start of each task, and each task's last.
            Step sizes and cumulative accuracy are those of the kept step; ``loss`` and ``correct``
            are means over the steps since the row before, so that nothing is lost in averages
            weighted by ``steps``.
        columns: of the measured ones, those to load, e.g. ``["correct"]``; others save memory.
            Step sizes are chosen by ``blocks``.
        blocks: names of blocks to load; None: all; ``()``: none.
        unfinished: ``"skip"`` runs that did not finish (with a warning), ``"keep"`` what they have,
            or ``"error"``.
        ignore: config entries that do not make a method; see `method_labels`.

    Raises:
        RunFolderError: if there is no run, or one is unreadable.
        BadArgument: for impossible arguments.
    """
    choices = ("skip", "keep", "error")
    known = isinstance(unfinished, str) and unfinished in choices
    require(known, "unfinished", unfinished, f"use one of {', '.join(choices)}")
    every = whole("every", every, least=1)
    wanted = _measured(columns)
    chosen = None if blocks is None else set(texts("blocks", blocks))
    paths = _finished(find_runs(*folders), unfinished)
    configs = [RunFolder(path).config for path in paths]
    labels = method_labels(configs, texts("ignore", ignore))
    names = _short_names(paths)
    methods = list(dict.fromkeys(labels))
    frames = []
    for number, (path, config, label) in enumerate(zip(paths, configs, labels, strict=True)):
        frame = _read_run(RunFolder(path), every, wanted, chosen)
        seed = seed_of(config)
        keys = {
            "method": _constant(methods.index(label), methods, len(frame)),
            "seed": np.full(len(frame), -1 if seed is None else seed, np.int64),
            "run": _constant(number, names, len(frame)),
        }
        frames.append(pd.concat([pd.DataFrame(keys), frame], axis=1))
    runs = pd.concat(frames, ignore_index=True)
    if chosen is not None:
        missing = chosen - set(block_names(runs))
        require(not missing, "blocks", sorted(missing), "no run has a block of that name")
    return runs


def _constant(code: int, names: list[str], length: int) -> Any:
    codes: Any = np.full(length, code)
    return pd.Categorical.from_codes(codes, categories=pd.Index(names))


def _measured(columns: Sequence[str] | None) -> set[str]:
    if columns is None:
        return set(MEASURED)
    columns = texts("columns", columns)
    for column in columns:
        require(column in MEASURED, "columns", column, f"known: {', '.join(MEASURED)}")
    return set(columns)


def _finished(paths: list[Path], unfinished: str) -> list[Path]:
    lacking = [path for path in paths if not RunFolder(path).finished]
    if not lacking or unfinished == "keep":
        return paths
    shown = ", ".join(map(str, lacking[:3])) + (" ..." if len(lacking) > 3 else "")
    if unfinished == "error" or len(lacking) == len(paths):
        raise RunFolderError(f"not finished: {shown}; run again or pass unfinished='keep'")
    warnings.warn(f"{len(lacking)} runs did not finish and are skipped: {shown}", stacklevel=3)
    return [path for path in paths if path not in set(lacking)]


def _short_names(paths: list[Path]) -> list[str]:
    """Folder names relative to what all have in common."""
    common = Path(os.path.commonpath([path.parent for path in paths]))
    return [str(path.relative_to(common)) for path in paths]


def _read_run(
    folder: RunFolder, every: int, wanted: set[str], blocks: set[str] | None
) -> pd.DataFrame:
    raw = folder.read_trajectory()
    task = raw["task"]
    kept = kept_rows(task, every)
    steps = np.diff(kept, prepend=-1)
    columns: dict[str, Any] = {
        "step": raw["step"][kept],
        "task": task[kept],
        "steps": steps.astype(np.int32),
    }
    correct = raw["correct"].astype(np.float64)
    for name, values in (("loss", raw["loss"].astype(np.float64)), ("correct", correct)):
        if name in wanted:
            columns[name] = _window_means(values, kept, steps)
    if "cumulative_accuracy" in wanted:
        cumulative = np.cumsum(correct)[kept] / (kept + 1)
        columns["cumulative_accuracy"] = cumulative.astype(np.float32)
    if "test_accuracy" in wanted:
        columns["test_accuracy"] = _test_accuracy(folder, task[kept])
    for name, values in raw.items():
        if name.startswith(ALPHA) and (blocks is None or name[len(ALPHA) :] in blocks):
            columns[name] = values[kept]
    return pd.DataFrame(columns)


def kept_rows(task: np.ndarray, every: int) -> np.ndarray:
    """Rows to keep when thinning: one in ``every`` from each task's start, and each task's last."""
    row = np.arange(len(task))
    starts = np.flatnonzero(np.diff(task, prepend=task[0] - 1))
    since = row - starts[np.searchsorted(starts, row, side="right") - 1]
    last = np.append(task[1:] != task[:-1], True)
    return np.flatnonzero((since % every == 0) | last)


def _window_means(values: np.ndarray, kept: np.ndarray, steps: np.ndarray) -> np.ndarray:
    starts = kept - steps + 1
    return (np.add.reduceat(values, starts) / steps).astype(np.float32)


def _test_accuracy(folder: RunFolder, task: np.ndarray) -> np.ndarray:
    result = np.full(len(task), np.nan, np.float32)
    if folder.tasks_file.exists():
        table = folder.read_tasks()
        measured = dict(zip(table["task"], table["test_accuracy"], strict=True))
        for row in np.flatnonzero(np.append(task[1:] != task[:-1], True)):
            result[row] = measured.get(task[row], np.nan)
    return result


def block_names(runs: pd.DataFrame) -> list[str]:
    """The blocks whose step sizes the frame holds, in the order recorded."""
    return [name[len(ALPHA) :] for name in runs.columns if name.startswith(ALPHA)]


def melt_alphas(
    runs: pd.DataFrame, blocks: Iterable[str] | None = None, every: int = 1
) -> pd.DataFrame:
    """Step sizes in long form: ``method, seed, run, step, task, block, alpha``.

    Args:
        runs: from `load_runs`.
        blocks: the blocks wanted; None: all.
        every: keep the rows whose step is a multiple of this.

    Raises:
        BadArgument: for an unknown block.
    """
    known = block_names(runs)
    chosen = known if blocks is None else texts("blocks", blocks)
    for block in chosen:
        if block not in known:
            bad("blocks", block, f"no such block; known: {', '.join(known)}")
    every = whole("every", every, least=1)
    kept = runs if every == 1 else runs[runs["step"] % every == 0]
    long = kept.melt(
        id_vars=["method", "seed", "run", "step", "task"],
        value_vars=[ALPHA + block for block in chosen],
        var_name="block",
        value_name="alpha",
    ).dropna(subset="alpha")
    long["block"] = pd.Categorical(long["block"].str.removeprefix(ALPHA), categories=chosen)
    return long.reset_index(drop=True)
