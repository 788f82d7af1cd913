"""What a sweep is made of: shared options, a grid, a list of methods, seeds; and its TOML file."""

from __future__ import annotations

import dataclasses
import itertools
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clmeta.errors import BadArgument, bad, require
from clmeta.runs.config import RunConfig
from clmeta.runs.parse import parse_seeds, parse_value

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

#: Sections of a sweep's TOML file.
SECTIONS = ("output", "seeds", "run", "grid", "runs", "slurm")
Grid = Mapping[str, Sequence[Any]]


def _with_own_data(options: Mapping[str, Any]) -> Mapping[str, Any]:
    """A preset brings the data set that it was made for, unless one is named."""
    if "dataset" in options or "stream" not in options:
        return options
    from clmeta.streams import preset_dataset

    dataset = preset_dataset(options["stream"])
    return options if dataset is None else {**options, "dataset": dataset}


@dataclass(frozen=True)
class SweepSpec:
    """Every combination of the grid's values, for each method of a list, for each seed.

    Options are those of `RunConfig`; an option inside a mapping is written with a dot, as in
    ``stream_options.tasks``.

    Args:
        options: shared by all runs.
        grid: option name to its values.
        methods: for each method the options (and under ``"grid"`` the grid values) in which it
            differs from the others; empty: one method, made of ``options`` and ``grid``.
        seeds: one run of everything for each; empty: the seed in ``options``.
        output: folder of the sweep, if the file names one.
        slurm: options of the cluster, if the file has them.

    Raises:
        BadArgument: for an unknown option, a value that cannot work or a grid without values.
    """

    options: Mapping[str, Any] = field(default_factory=dict)
    grid: Grid = field(default_factory=dict)
    methods: Sequence[Mapping[str, Any]] = ()
    seeds: Sequence[int] = ()
    output: str | None = None
    slurm: Mapping[str, Any] = field(default_factory=dict)

    def configs(self) -> list[RunConfig]:
        """The runs, methods outermost and seeds innermost; equal ones once."""
        configs = []
        for method in self.methods or [{}]:
            own = dict(method)
            grid = {**_checked_grid(self.grid), **_checked_grid(own.pop("grid", {}))}
            shared = merged(self.options, own)
            for values in itertools.product(*grid.values()):
                options = merged(shared, dict(zip(grid, values, strict=True)))
                config = RunConfig.from_dict(_with_own_data(options))
                seeds = self.seeds or [config.seed]
                configs += [dataclasses.replace(config, seed=seed) for seed in seeds]
        return list(dict.fromkeys(configs))

    @classmethod
    def from_file(cls, path: str | Path) -> SweepSpec:
        """A sweep from a TOML file.

        ::

            output = "runs/step-sizes"
            seeds = "0-4"               # or a list of whole numbers

            [run]                       # options of every run
            stream = "abrupt_classes"
            stream_options.tasks = 10

            [grid]                      # every combination of these
            alpha0 = [1e-5, 1e-4]

            [[runs]]                    # a list of methods, each with the grid
            meta = "none"
            [[runs]]
            blocks = "head"
            grid.eta = [1e-3, 1e-2]     # and perhaps with more of its own

            [slurm]                     # used with --launcher slurm
            partition = "gpu"

        Raises:
            BadArgument: naming the file and what is wrong with it.
        """
        try:
            content = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise BadArgument(f"spec={str(path)!r}: {reason}; give a sweep's TOML file") from None
        try:
            return cls._from_toml(content)
        except BadArgument as error:
            raise BadArgument(f"{path}: {error}") from None

    @classmethod
    def _from_toml(cls, content: dict[str, Any]) -> SweepSpec:
        for name in content:
            mend = f"unknown entry; known: {', '.join(SECTIONS)} (a run's options go under [run])"
            require(name in SECTIONS, name, content[name], mend)
        for name in ("run", "grid", "slurm"):
            is_table = isinstance(content.get(name, {}), dict)
            require(is_table, name, content.get(name), f"must be a table: [{name}]")
        methods = content.get("runs", [])
        listed = isinstance(methods, list) and all(isinstance(m, dict) for m in methods)
        require(listed, "runs", methods, "must be a list of tables: [[runs]]")
        output = content.get("output")
        named = output is None or (isinstance(output, str) and output != "")
        require(named, "output", output, "must be the path of a folder")
        seeds = _seeds(content.get("seeds", []))
        spec = cls(
            content.get("run", {}),
            content.get("grid", {}),
            methods,
            seeds,
            output,
            content.get("slurm", {}),
        )
        spec.configs()
        return spec

    def changed(
        self, options: Mapping[str, Any], grid: Grid, seeds: Sequence[int] | None
    ) -> SweepSpec:
        """The sweep with further options and grid values, which win, and with other seeds."""
        return dataclasses.replace(
            self,
            options=merged(self.options, options),
            grid={**self.grid, **grid},
            seeds=self.seeds if seeds is None else seeds,
        )


def merged(options: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """``options`` with ``changes``; dotted names and mappings of keywords change single keywords.

    Raises:
        BadArgument: for a dotted name whose first part is not a mapping of keywords.
    """
    result = {key: dict(v) if isinstance(v, Mapping) else v for key, v in options.items()}
    for name, value in changes.items():
        option, dot, keyword = name.partition(".")
        if option.endswith("_options") and (dot or isinstance(value, Mapping)):
            result[option] = {**result.get(option, {}), **({keyword: value} if dot else value)}
        elif dot:
            bad("option", name, "only *_options have keywords, as in stream_options.tasks")
        else:
            result[name] = value
    return result


def parse_grid(words: Iterable[str] | None) -> dict[str, list[Any]]:
    """``["alpha0=1e-5,1e-4", "blocks=scalar,head"]`` as option name to values.

    Commas inside brackets, braces and quotes don't separate values.

    Raises:
        BadArgument: for a word without ``=`` or without values, or a name given twice.
    """
    grid: dict[str, list[Any]] = {}
    for word in words or ():
        name, equals, text = word.partition("=")
        name = name.strip().replace("-", "_")
        values = [parse_value(part.strip()) for part in split_values(text)]
        if not equals or not name or "" in values:
            bad("grid", word, "write option=value,value, e.g. alpha0=1e-5,1e-4")
        if name in grid:
            bad("grid", word, f"{name} is given twice; list all of its values once")
        grid[name] = values
    return _checked_grid(grid)


def split_values(text: str) -> list[str]:
    """Parts between the commas that are not inside brackets, braces or double quotes."""
    parts, depth, quoted = [""], 0, False
    for letter in text:
        if letter == '"':
            quoted = not quoted
        elif not quoted:
            depth += (letter in "[{") - (letter in "]}")
        if letter == "," and depth == 0 and not quoted:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def _checked_grid(grid: Any) -> dict[str, list[Any]]:
    if not isinstance(grid, Mapping):
        bad("grid", grid, "must map options to lists of values")
    known = [f.name for f in dataclasses.fields(RunConfig)]
    for name, values in grid.items():
        require(name != "seed", "grid", name, "give seeds with --seeds or the file's seeds entry")
        option = name.partition(".")[0]
        require(option in known, "grid", name, f"unknown option; known: {', '.join(known)}")
        is_list = isinstance(values, Sequence) and not isinstance(values, str)
        require(is_list and len(values) > 0, f"grid.{name}", values, "must list at least one value")
    return {name: list(values) for name, values in grid.items()}


def _seeds(seeds: Any) -> list[int]:
    if isinstance(seeds, str):
        return parse_seeds(seeds)
    whole = isinstance(seeds, list) and all(type(seed) is int for seed in seeds)
    require(whole, "seeds", seeds, 'write "0-4" or a list of whole numbers')
    require(len(set(seeds)) == len(seeds), "seeds", seeds, "a seed is given twice; give each once")
    return seeds
