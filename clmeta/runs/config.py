"""What one run is made of, as a value: frozen, stored as JSON, checked before anything trains."""

# ruff: noqa: RUF009 - each field is an option, which says all that there is to say about it.

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from clmeta.errors import BadArgument, bad
from clmeta.ground.checks import (
    ALPHA0,
    ETA,
    FINE_BOUNDS,
    GAMMA,
    HESSIANS,
    NONFINITE,
    WEIGHT_DECAY,
    mapping,
)
from clmeta.ground.names import learner_label, shown
from clmeta.ground.reading import loads
from clmeta.record.interval import DEFAULT
from clmeta.runs.files import read_options
from clmeta.runs.limits import MOST_CORES, TOGETHER, check_run_numbers
from clmeta.runs.options import DATA, LEARNER, RUN, STEPS, documented, option, options_of
from clmeta.runs.parse import among, write_value

Blocks = str | Mapping[str, Any]
ByBlock = float | Mapping[str, float]
Bound = float | None
Every = int | str | None

#: What a config.json holds beside the options: facts of the run, which repeat by themselves.
FACTS = "resolved"
_FINE = "none; for node and weight blocks {} times alpha0"


@documented
@dataclass(frozen=True)
class RunConfig:
    """All options of one run; two runs with equal configs see the same data and weights.

    Options that belong to one stream, model or rule are mappings of that thing's own keywords.
    Names are registered ones (``clmeta list`` shows them) or ``package.module:name``. Numbers that
    differ between blocks are a mapping, ``{"body": 1e-4, "head": 1e-3}``, in which ``"*"`` stands
    for all other blocks; without it those have the default.
    ``dataclasses.replace`` makes a variant; `to_json` and `from_json` are inverse to each other.

    Args:
        {options}

    Raises:
        BadArgument: for an option that cannot work, whatever the data.
    """

    stream: str = option("permuted_inputs", "Stream or preset; see clmeta list streams.", DATA)
    stream_options: Mapping[str, Any] = option(
        {}, "Options of the stream, e.g. tasks=5, steps_per_task=2000.", DATA, short=("-s",)
    )
    dataset: str = option(
        "digits",
        "Data set, .npz file or image folder; see clmeta list datasets. A preset brings its own.",
        DATA,
    )
    dataset_options: Mapping[str, Any] = option(
        {}, "Options of the data set, e.g. image_size=32 (pixels).", DATA
    )
    data_root: str = option("data", "Folder of named data sets.", DATA, identity=False)
    download: bool = option(True, "Fetch a named data set that is missing.", DATA, identity=False)
    model: str = option("mlp", "Network; see clmeta list models.", LEARNER)
    model_options: Mapping[str, Any] = option(
        {}, "Options of the network, e.g. hidden=128 (units).", LEARNER, short=("-m",)
    )
    strategy: str = option("plain", "How to learn from it; see clmeta list strategies.", LEARNER)
    strategy_options: Mapping[str, Any] = option(
        {}, "Options of the strategy, e.g. mem_size=500.", LEARNER
    )
    base: str = option(
        "adamw", "Base update: a rule (clmeta list rules) or a torch optimiser's path.", STEPS
    )
    base_options: Mapping[str, Any] = option(
        {}, "Options of the base update, e.g. accumulate=true.", STEPS
    )
    meta: str = option("adam", "Meta update: a rule, or none for a fixed step size.", STEPS)
    meta_options: Mapping[str, Any] = option(
        {}, "Options of the meta update.", STEPS, adaptive=True
    )
    blocks: Blocks = option(
        "scalar",
        "Which weights share a step size: see clmeta list blocks; or parameter-name prefixes, "
        "body=features,classifier.1;head=classifier.3.",
        STEPS,
        apart=False,
    )
    alpha0: ByBlock = option(
        ALPHA0,
        "Step size at the start, above 0; or one for each block: body=1e-4,head=1e-3.",
        STEPS,
        apart=False,
    )
    eta: ByBlock = option(
        ETA,
        "Meta step size: of log alpha, per step; or one for each block.",
        STEPS,
        apart=False,
        adaptive=True,
    )
    gamma: ByBlock = option(
        GAMMA,
        "Discount per step, in [0, 1]; 1 where nothing ever changes; or one for each block.",
        STEPS,
        apart=False,
        adaptive=True,
    )
    weight_decay: ByBlock = option(
        WEIGHT_DECAY,
        "Decoupled: each step also shrinks weights by alpha times this; or one for each block.",
        STEPS,
        apart=False,
    )
    alpha_min: Bound = option(
        None,
        "Smallest step size.",
        STEPS,
        default_said=_FINE.format(write_value(FINE_BOUNDS[0])),
        apart=False,
    )
    alpha_max: Bound = option(
        None,
        "Largest step size; inf for none.",
        STEPS,
        default_said=_FINE.format(write_value(FINE_BOUNDS[1])),
        apart=False,
    )
    nonfinite: str = option(
        "raise",
        "An update that is not finite: raise ends the run, skip counts it.",
        STEPS,
        choices=NONFINITE,
        apart=False,
    )
    hessian: str = option(
        "free",
        "Second derivatives in the trace: free (none), exact or diagonal.",
        STEPS,
        choices=HESSIANS,
        adaptive=True,
    )
    engine: str = option(
        "auto",
        "What makes the steps, see clmeta list engines; auto: the fastest that there is.",
        STEPS,
        identity=False,
    )
    imports: tuple[str, ...] = option(
        (), "Module to import first, which registers names of your own.", RUN, identity=False
    )
    seed: int = option(0, "Seed of data order and initial weights.", RUN, apart=False)
    device: str = option("cpu", "cpu, cuda, cuda:1, ...", RUN, identity=False)
    threads: int = option(
        1,
        "CPU threads of a run; at batch size one, 1 is fastest.",
        RUN,
        least=1,
        most=MOST_CORES,
        identity=False,
    )
    checkpoint_every: Every = option(
        DEFAULT,
        "Between two checkpoints, from which a killed run goes on: time (60s, 5min) or steps "
        "(1000); none for none.",
        RUN,
        identity=False,
    )
    evaluate: bool = option(True, "Measure test accuracy at each task's end.", RUN, apart=False)
    save_model: bool = option(
        False,
        "Keep the final weights in the run's folder, for clmeta.load_model.",
        RUN,
        identity=False,
        apart=False,
    )
    name: str | None = option(
        None,
        "What tables and figures call the method.",
        RUN,
        default_said="made of the rules",
        identity=False,
    )

    def __post_init__(self) -> None:
        for name, each in OPTIONS.items():
            object.__setattr__(self, name, each.plain(getattr(self, name)))
        check_run_numbers({name: getattr(self, name) for name in TOGETHER})

    @property
    def method(self) -> str:
        """The run's label: `name`, or base, meta and blocks, e.g. ``"adamw/adam layer"``.

        A strategy other than the plain loop is named behind it.
        """
        if self.name:
            return self.name
        label = learner_label(dataclasses.asdict(self))
        if self.meta == "none":
            label += f" {shown(self.alpha0)}"
        elif self.hessian != "free":
            label += f", {self.hessian} Hessian"
        strategy = shown(self.strategy)
        return label if strategy == "plain" else f"{label}, {strategy}"

    def to_dict(self) -> dict[str, Any]:
        """The options as plain JSON values, under their names; infinity as ``"inf"``."""
        values = {name: getattr(self, name) for name in OPTIONS}
        finite = {name: "inf" if value == math.inf else value for name, value in values.items()}
        return json.loads(json.dumps(finite))

    def to_json(self) -> str:
        """The options as JSON text."""
        return json.dumps(self.to_dict(), indent=2)

    @classmethod
    def from_dict(cls, options: Mapping[str, Any]) -> RunConfig:
        """A config from `to_dict`'s form or from the content of a run's ``config.json``.

        Raises:
            BadArgument: for an unknown option, or as the class does.
        """
        options = mapping("options", options)
        kept = {name: value for name, value in options.items() if name not in (FACTS, "method")}
        for name in kept:
            if name not in OPTIONS:
                bad(name, kept[name], f"unknown option; {among(name, OPTIONS)}")
        return cls(**kept)

    @classmethod
    def from_json(cls, text: str) -> RunConfig:
        """A config from JSON text. Raises BadArgument if it is none."""
        try:
            options = loads(text)
        except ValueError as error:
            raise BadArgument(f"config: not JSON ({error}); pass a run's config.json") from None
        if not isinstance(options, dict):
            bad("config", options, "must be a JSON object of options")
        return cls.from_dict(options)

    @classmethod
    def from_file(cls, path: str | os.PathLike[str], *, trust: bool = False) -> RunConfig:
        """A config from a run's folder or ``config.json``, or another file of options.

        Args:
            path: the folder or file.
            trust: take one that names code of its own (``package.module:name``, ``imports``),
                which a run of it loads.

        Raises:
            BadArgument: naming the file and what is wrong with it.
        """
        options = read_options(path, trust=trust)
        try:
            return cls.from_dict(options)
        except BadArgument as error:
            raise BadArgument(f"{os.fspath(path)}: {error}") from None

    def key(self, *, without: tuple[str, ...] = ()) -> str:
        """Ten hex digits that depend on what the run computes, and on nothing else.

        Args:
            without: further options to leave out, e.g. ``("seed",)`` to group a method's seeds.
        """
        options = self.to_dict()
        for name in {*NOT_IDENTITY, *without}:
            del options[name]
        text = json.dumps(options, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:10]

    def __hash__(self) -> int:
        return hash(json.dumps(self.to_dict(), sort_keys=True))


#: The options of a run by name, in the order in which help shows them.
OPTIONS = options_of(RunConfig)
#: Options that change where or how fast a run goes, not what comes out.
NOT_IDENTITY = tuple(name for name, each in OPTIONS.items() if not each.identity)
#: Options that change nothing of what comes out but its rounding.
PROCESS = ("device", "threads", "engine")
