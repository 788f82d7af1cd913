"""The best value of a swept option: chosen by a metric's mean over seeds, with its interval."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from clmeta.errors import RunFolderError, bad, require
from clmeta.ground.checks import check_level, mapping
from clmeta.ground.names import flatten, method_labels, seed_of
from clmeta.record.find import find_runs
from clmeta.record.runfolder import RunFolder
from clmeta.sweep.metrics import METRICS, Metric
from clmeta.sweep.spec import whole_seeds

if TYPE_CHECKING:
    import pandas as pd

EDGE = "lies at the edge of its grid, so a better one may lie beyond: extend the grid"


@dataclass(frozen=True)
class Best:
    """The choice within one method, i.e. among runs that agree in all but the option and seed.

    Attributes:
        method: the method's label, without the option.
        option: what was chosen.
        value: its best value.
        mean, low, high: the metric on the seeds reported on, with its confidence interval; the
            bounds are NaN with one seed.
        tuned_on, reported_on: the seeds chosen on; those reported on, of finished runs.
        table: every value with ``value, mean, low, high, n`` on the seeds chosen on, best first;
            `gain` and its bounds are the best value's paired difference to the row's.
        warnings: what to know before relying on it.
    """

    method: str
    option: str
    value: Any
    mean: float
    low: float
    high: float
    tuned_on: list[int]
    reported_on: list[int]
    table: pd.DataFrame
    warnings: list[str] = field(default_factory=list)

    @property
    def seeds(self) -> int:
        """How many seeds are reported on."""
        return len(self.reported_on)


def best(
    *folders: str | os.PathLike[str],
    option: str = "alpha0",
    metric: str = "cumulative_accuracy",
    where: Mapping[str, Any] | None = None,
    tune_seeds: Sequence[int] | None = None,
    report_seeds: Sequence[int] | None = None,
    level: float = 0.95,
) -> list[Best]:
    """Choose an option's best value in each method of a sweep.

    Runs of one seed see the same data, so values are compared on the same seeds; a value for which
    a seed's run is missing (not started, failed) is left out, with a warning. Chosen and reported
    on the same seeds, the interval is too good; choose on some seeds and report on others.

    Args:
        folders: the sweep's folder, run folders, or globs.
        option: a swept option, with a dot for one inside a mapping: ``stream_options.tasks``.
        metric: name in `METRICS`.
        where: only runs whose options have these values.
        tune_seeds: seeds to choose on; None: all, or with ``report_seeds`` all others.
        report_seeds: seeds to report on; None: all, or with ``tune_seeds`` all others.
        level: of confidence.

    Returns:
        One choice a method, for the methods with at least two values of the option.

    Raises:
        BadArgument: for an unknown metric or option, seeds that no run has, seeds both chosen and
            reported on, or an option without two values in any method.
        RunFolderError: if there is no finished run, or one has no seed or is damaged.
    """
    chosen, level = METRICS.get(metric, "metric"), check_level(level)
    tune_seeds = None if tune_seeds is None else whole_seeds(tune_seeds, "tune_seeds")
    report_seeds = None if report_seeds is None else whole_seeds(report_seeds, "report_seeds")
    require(isinstance(option, str), "option", option, "must be the name of an option")
    frame = _frame(folders, option, chosen, {} if where is None else mapping("where", where))
    _seeds(frame, tune_seeds, report_seeds)  # of all methods, to find seeds that no run has
    found = []
    for method, group in frame.groupby("method", sort=False):
        if group["key"].nunique() > 1:
            tune, report = _seeds(group, tune_seeds, report_seeds, strict=False)
            found.append(_choose(group, str(method), option, chosen, tune, report, level))
    require(len(found) > 0, "option", option, "no method has runs with two values of it")
    return found


def _frame(
    folders: Sequence[str | os.PathLike[str]], option: str, metric: Metric, where: Mapping[str, Any]
) -> pd.DataFrame:
    """A row for each run, unfinished ones too: method, key and value of the option, seed, score."""
    runs = [RunFolder(path) for path in find_runs(*folders)]
    flat = [{**config, **flatten(config)} for config in (run.config for run in runs)]
    for name in (option, *where):
        known = sorted({key for config in flat for key in config if not key.startswith("resolved")})
        if not any(name in config for config in flat):
            bad("option" if name == option else "where", name, f"known: {', '.join(known)}")
    kept = [i for i, c in enumerate(flat) if all(c.get(k) == v for k, v in where.items())]
    require(len(kept) > 0, "where", dict(where), "no run has these values")
    require(
        any(runs[i].finished for i in kept),
        "folder",
        list(map(str, folders)),
        "no run is finished; start the sweep again to finish it",
    )
    import pandas as pd

    rows = []
    for i in kept:
        value = flat[i].get(option)
        score = metric.read(runs[i]) if runs[i].finished else math.nan
        key, seed = json.dumps(value, sort_keys=True), seed_of(flat[i])
        if seed is None:
            raise RunFolderError(f"{runs[i].config_file} has no seed, by which values are compared")
        rows.append({"key": key, "value": value, "seed": seed, "score": score})
    frame = pd.DataFrame(rows)
    configs = [{k: v for k, v in runs[i].config.items() if k != "method"} for i in kept]
    frame["method"] = method_labels(configs, ignore=[option])
    return frame


def _seeds(
    frame: pd.DataFrame,
    tune: Sequence[int] | None,
    report: Sequence[int] | None,
    strict: bool = True,
) -> tuple[list[int], list[int]]:
    """Seeds to choose and to report on, out of those that the frame's runs have."""
    known = sorted({int(seed) for seed in frame["seed"]})
    for name, seeds in (("tune_seeds", tune), ("report_seeds", report)):
        missing = sorted(set(seeds or ()) - set(known))
        require(
            not (missing and strict), name, missing, f"no run has these seeds; there are {known}"
        )
    if tune is None and report is None:
        return known, known
    if tune is None:
        tune = [seed for seed in known if seed not in set(report or ())]
    if report is None:
        report = [seed for seed in known if seed not in set(tune)]
    both = sorted(set(tune) & set(report))
    mend = "choose on some seeds and report on others"
    require(not both, "report_seeds", both, f"are tune_seeds too: {mend}")
    require(len(tune) > 0, "report_seeds", list(report), f"no seed is left to choose on: {mend}")
    require(len(report) > 0, "tune_seeds", list(tune), f"no seed is left to report on: {mend}")
    return list(tune), list(report)


def _choose(
    runs: pd.DataFrame,
    method: str,
    option: str,
    metric: Metric,
    tune: Sequence[int],
    report: Sequence[int],
    level: float,
) -> Best:
    from clmeta.analysis.statistics import mean_over_seeds

    warnings = []
    twice = runs.duplicated(["key", "seed"])
    require(not twice.any(), "folder", method, f"two runs with one seed and one {option}")
    finished = runs[runs["seed"].isin(tune)].dropna(subset="score")
    counts = finished.groupby("key")["seed"].nunique()
    complete = [key for key in runs["key"].unique() if counts.get(key, 0) == len(tune)]
    incomplete = [key for key in runs["key"].unique() if key not in complete]
    if not complete:
        bad("tune_seeds", list(tune), f"no value of {option} has a finished run for each of them")
    if incomplete:
        said = ", ".join(f"{key} ({counts.get(key, 0)} of {len(tune)} seeds)" for key in incomplete)
        warnings.append(f"left out, as runs are missing or failed: {option} = {said}")
    usable = finished[finished["key"].isin(complete)]
    table = mean_over_seeds(usable, "score", ["key"], level=level)
    table = table.sort_values("mean", ascending=not metric.higher, kind="stable")
    key = str(table["key"].iloc[0])
    table = _with_gains(table, usable, key, level)
    values = {row["key"]: row["value"] for _, row in runs.iterrows()}
    table.insert(0, "value", [values[each] for each in table["key"]])
    at_edge = _edge([values[each] for each in values], values[key])
    if at_edge:
        warnings.append(f"{option} = {key} {EDGE} {at_edge}")
    elif incomplete and _edge([values[each] for each in complete], values[key]):
        warnings.append(f"{option} = {key} is next to values left out")
    final = runs[(runs["key"] == key) & runs["seed"].isin(report)].dropna(subset="score")
    if len(final) == 0:
        bad("report_seeds", list(report), f"no finished run of {method} with {option}={key}")
    if len(final) < len(report):
        warnings.append(f"{len(report) - len(final)} of the reported seeds have no finished run")
    if set(report) == set(tune) and len(complete) > 1:
        warnings.append("chosen and reported on the same seeds, so the mean is a little too good")
    row = mean_over_seeds(final, "score", ["key"], level=level).iloc[0]
    mean, low, high = (float(row[name]) for name in ("mean", "low", "high"))
    return Best(
        method,
        option,
        values[key],
        mean,
        low,
        high,
        list(tune),
        sorted(int(seed) for seed in final["seed"]),
        table.drop(columns="key").reset_index(drop=True),
        warnings,
    )


def _with_gains(table: pd.DataFrame, runs: pd.DataFrame, key: str, level: float) -> pd.DataFrame:
    """The table with the paired differences, best value minus row's."""
    from clmeta.analysis.statistics import paired_differences

    pairs = paired_differences(runs.assign(method=runs["key"]), "score", key, level=level)
    pairs = pairs.set_index("method")
    for name, source in (("gain", "mean"), ("gain_low", "high"), ("gain_high", "low")):
        table[name] = [-pairs[source].get(each, math.nan) for each in table["key"]]
    return table


def _edge(values: Sequence[Any], value: Any) -> str:
    """Whether a number is the largest or smallest of several: ``upwards``, ``downwards`` or ""."""
    if len(values) < 2 or not all(type(each) in (int, float) for each in values):
        return ""
    return {max(values): "upwards", min(values): "downwards"}.get(value, "")
