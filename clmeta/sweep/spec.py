"""What a sweep is made of: shared options, a grid, a list of methods, seeds; and its file."""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from clmeta.errors import BadArgument, bad, require
from clmeta.ground.checks import listed, mapping, whole
from clmeta.runs.config import FACTS, OPTIONS, RunConfig
from clmeta.runs.files import read_options
from clmeta.runs.imports import import_modules
from clmeta.runs.parse import MOST_RUNS, among, parse_seeds, parse_value, split_values
from clmeta.runs.trust import Trust
from clmeta.sweep.merge import dotted, merged, nested, without

#: Sections of a sweep's file.
SECTIONS = ("output", "seeds", "run", "grid", "runs", "slurm")
Grid = Mapping[str, Sequence[Any]]


@dataclass(frozen=True)
class SweepSpec:
    """Every combination of the grid's values, for each method of a list, for each seed.

    Options are those of `RunConfig`; an option inside a mapping is written with a dot, as in
    ``stream_options.tasks``. What a method says of itself goes before what is said of all.

    Args:
        options: shared by all runs.
        grid: option name to its values.
        methods: for each method the options (and under ``"grid"`` the grid values) in which it
            differs from the others; empty: one method, made of ``options`` and ``grid``.
        seeds: one run of everything for each; empty: the seed in ``options``.
        output: folder of the sweep, if the file names one.
        slurm: options of the cluster, if the file has them.
        seen: description of the data that the run saw whose config this started from.

    Raises:
        BadArgument: for an unknown option, one that is both given and in the grid, a value that
            cannot work, a grid without values, or more runs than anybody means.
    """

    options: Mapping[str, Any] = field(default_factory=dict)
    grid: Grid = field(default_factory=dict)
    methods: Sequence[Mapping[str, Any]] = ()
    seeds: Sequence[int] = ()
    output: str | None = None
    slurm: Mapping[str, Any] = field(default_factory=dict)
    seen: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        checked: dict[str, Any] = {
            name: mapping(name, getattr(self, name))
            for name in ("options", "grid", "slurm", "seen")
        }
        methods = listed("methods", self.methods)
        checked["methods"] = [mapping("methods", method) for method in methods]
        checked["seeds"] = whole_seeds(self.seeds)
        require(isinstance(self.output, str | None), "output", self.output, "must be text or None")
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    def configs(self) -> list[RunConfig]:
        """The runs, methods outermost and seeds innermost; equal ones once."""
        parts = [self._method(method) for method in self.methods or [{}]]
        count = sum(math.prod(map(len, grid.values())) for _, grid in parts)
        count *= max(len(self.seeds), 1)
        require(count <= MOST_RUNS, "grid", f"{count:,} runs", f"start at most {MOST_RUNS:,}")
        configs = []
        for shared, grid in parts:
            for values in itertools.product(*grid.values()):
                options = merged(shared, dict(zip(grid, values, strict=True)))
                config = RunConfig.from_dict(nested(_with_own_data(options)))
                seeds = self.seeds or [config.seed]
                configs += [dataclasses.replace(config, seed=seed) for seed in seeds]
        return list(dict.fromkeys(configs))

    def _method(self, method: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, list[Any]]]:
        """A method's options and grid."""
        own = dict(method)
        own_grid, shared_grid = _checked_grid(own.pop("grid", {})), _checked_grid(self.grid)
        for options, grid in ((self.options, shared_grid), (own, own_grid)):
            refuse_twice(options, grid)
        grid = {**without(shared_grid, dotted(own)), **own_grid}
        return merged(without(self.options, own_grid), own), grid

    @classmethod
    def from_file(
        cls, path: str | os.PathLike[str], argument: str = "spec", *, trust: Trust = False
    ) -> SweepSpec:
        """A sweep from a TOML or JSON file; of a run's folder or config: that run.

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

        Args:
            path: the folder or file.
            argument: what messages call it.
            trust: whether code that it names may be loaded: True, or the modules that may.

        Raises:
            BadArgument: naming the file and what is wrong with it.
        """
        content = read_options(path, argument, trust=trust)
        try:
            if set(content) <= {*OPTIONS, FACTS, "method"}:
                return cls._of_a_run(content)
            return cls._of_sections(content)
        except BadArgument as error:
            raise BadArgument(f"{os.fspath(path)}: {error}") from None

    @classmethod
    def _of_a_run(cls, content: dict[str, Any]) -> SweepSpec:
        options = {name: value for name, value in content.items() if name in OPTIONS}
        RunConfig.from_dict(options)
        return cls(options, seen=_seen(content.get(FACTS, {})))

    @classmethod
    def _of_sections(cls, content: dict[str, Any]) -> SweepSpec:
        for name in content:
            mend = f"unknown entry; {among(name, SECTIONS)} (a run's options go under [run])"
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
        spec = cls(
            content.get("run", {}),
            content.get("grid", {}),
            methods,
            _seeds(content.get("seeds", [])),
            output,
            content.get("slurm", {}),
        )
        spec.configs()
        return spec

    def changed(
        self, options: Mapping[str, Any], grid: Grid, seeds: Sequence[int] | None = None
    ) -> SweepSpec:
        """The sweep with further options and grid values, which win, and with other seeds.

        Options of what another takes the place of, as of another stream, go with it.

        Raises:
            BadArgument: for an option that is both given and in the grid.
        """
        options, grid = mapping("options", options), mapping("grid", grid)
        refuse_twice(options, grid)
        gone = {*dotted(options), *grid} - {"imports"}
        before = dotted(self.options)
        replaced = [f"{n}_options" for n, v in options.items() if before.get(n, v) != v]
        kept = without(before, [*grid, *replaced])
        methods = [
            {**without(m, gone), "grid": without(m.get("grid", {}), gone)} for m in self.methods
        ]
        other_data = any(name.startswith("dataset") for name in gone)
        return dataclasses.replace(
            self,
            options=merged(kept, options),
            grid={**without(self.grid, gone), **grid},
            methods=methods,
            seeds=self.seeds if seeds is None else seeds,
            seen={} if other_data else self.seen,
        )


def _seen(facts: Any) -> Mapping[str, Any]:
    """What a run wrote down of its data; nothing if it wrote nothing."""
    found = facts
    for name in ("stream", "data"):
        found = found.get(name, {}) if isinstance(found, Mapping) else None
    whole = isinstance(found, Mapping) and (not found or isinstance(found.get("fingerprint"), str))
    require(whole, FACTS, facts, "is not what a run writes there; leave the entry out")
    return found or {}


def _with_own_data(options: Mapping[str, Any]) -> Mapping[str, Any]:
    """A preset brings the data set that it was made for, unless one is named."""
    if "dataset" in options or "stream" not in options:
        return options
    import_modules(OPTIONS["imports"].plain(options.get("imports", ())))
    from clmeta.streams import preset_dataset

    dataset = preset_dataset(options["stream"])
    return options if dataset is None else {**options, "dataset": dataset}


def refuse_twice(options: Mapping[str, Any], grid: Mapping[str, Any]) -> None:
    """Raise BadArgument for an option that is both given and in the grid."""
    for name, value in dotted(options).items():
        require(name not in grid, name, value, "is in the grid as well; give it once")


def refuse_useless(names: Iterable[str], configs: Sequence[RunConfig]) -> None:
    """Raise BadArgument for named options that no method has a use for."""
    if all(config.meta == "none" for config in configs):
        for name in names:
            if name in OPTIONS and OPTIONS[name].adaptive:
                value = getattr(configs[0], name)
                bad(name, value, "has no use with meta='none', which learns no step size; drop one")


def parse_grid(words: Iterable[str]) -> dict[str, list[Any]]:
    """``["alpha0=1e-5,1e-4", "blocks=scalar,head"]`` as option name to values.

    Commas inside brackets, braces and quotes don't separate values.

    Raises:
        BadArgument: for a word without ``=`` or without values, or a name given twice.
    """
    grid: dict[str, list[Any]] = {}
    for word in words:
        name, equals, text = word.partition("=")
        name = name.strip().replace("-", "_")
        parts = split_values(text)
        complete = bool(equals and name) and "" not in parts
        require(complete, "grid", word, "write option=value,value, e.g. alpha0=1e-5,1e-4")
        require(name not in grid, "grid", word, f"{name} is given twice; list its values once")
        _checked_grid({name: parts})
        grid[name] = [_parse(name, part) for part in parts]
    return grid


def _parse(name: str, text: str) -> Any:
    """A value in a grid: as the option is written, keywords and lists as JSON."""
    if "." in name or OPTIONS[name].kind.many:
        return parse_value(text)
    return OPTIONS[name].kind.parse(name, text)


def _checked_grid(grid: Any) -> dict[str, list[Any]]:
    grid = dotted(mapping("grid", grid))
    for name, values in grid.items():
        require(name != "seed", "grid", name, "give seeds with --seeds or the file's seeds entry")
        option = name.partition(".")[0]
        require(option in OPTIONS, "grid", name, f"unknown option; {among(option, OPTIONS)}")
        is_list = isinstance(values, Sequence) and not isinstance(values, str)
        require(is_list and len(values) > 0, f"grid.{name}", values, "must list at least one value")
    return {name: list(values) for name, values in grid.items()}


def _seeds(seeds: Any) -> list[int]:
    return parse_seeds("seeds", seeds) if isinstance(seeds, str) else whole_seeds(seeds)


def whole_seeds(seeds: Any, argument: str = "seeds") -> list[int]:
    """Seeds as a list. Raises BadArgument for others than whole numbers, or one given twice."""
    mend = 'write "0-4" or a list of whole numbers'
    require(not isinstance(seeds, str), argument, seeds, mend)
    given = listed(argument, seeds)
    require(len(given) <= MOST_RUNS, argument, len(given), f"give at most {MOST_RUNS:,}")
    numbers = [whole(argument, seed, least=0) for seed in given]
    require(
        len(set(numbers)) == len(numbers), argument, seeds, "a seed is given twice; give each once"
    )
    return numbers
