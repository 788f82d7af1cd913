"""What one run is made of, as a value: frozen, stored as JSON, checked before anything trains."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clmeta.errors import BadArgument, bad, require
from clmeta.ground.checks import HESSIANS, NONFINITE, NUMBERS, check_numbers

#: What a config.json holds beside the options: facts of the run, which repeat by themselves.
FACTS = "resolved"
#: Options that change where or how fast a run goes, not what comes out.
NOT_IDENTITY = ("data_root", "download", "device", "threads", "name")


@dataclass(frozen=True)
class RunConfig:
    """All options of one run; two runs with equal configs see the same data and weights.

    Options that belong to one stream, model or rule are mappings of that thing's own keywords.
    ``dataclasses.replace`` makes a variant; `to_json` and `from_json` are inverse to each other.

    Args:
        stream: a registered stream or preset.
        stream_options: keywords of the stream, e.g. ``{"tasks": 5, "batch_size": 1}``.
        dataset: a registered data set, an ``.npz`` file or a folder of images.
        dataset_options: further keywords of ``clmeta.streams.load_dataset``.
        data_root: folder in which named data sets are kept, and downloaded to.
        download: fetch a named data set that is missing.
        model: a registered network or ``package.module:factory``.
        model_options: keywords of the network, e.g. ``{"hidden": 128}``.
        base: a registered rule, or ``package.module:name`` of a torch optimiser.
        base_options: keywords of the base rule, e.g. ``{"accumulate": True}``.
        meta: a registered rule, or ``"none"`` for a fixed step size.
        meta_options: keywords of the meta rule.
        blocks: ``"scalar"``, ``"layer"``, ``"head"``, ... or block name to parameter-name prefixes.
        alpha0: step size at the start.
        eta: meta step size.
        gamma: discount per step, in [0, 1].
        weight_decay: decoupled weight decay kappa.
        alpha_min, alpha_max: bounds of the step sizes; None: none.
        nonfinite: ``"raise"`` or ``"skip"`` updates that are not finite.
        hessian: second derivatives in the trace: ``"free"``, none; ``"exact"`` or ``"diagonal"``.
        seed: of everything; data order and initial weights draw from separate generators, so runs
            that differ only in the optimiser's options see the same data from the same weights.
        device: where the model lives, in torch's notation.
        strategy: a registered strategy; ``"plain"`` is the ordinary PyTorch loop.
        strategy_options: keywords of the strategy.
        evaluate: measure test accuracy at the end of each task.
        threads: threads of torch on the CPU; at batch size one, more than 1 slows a run down.
        name: what figures and tables call the method; by default composed from the rules.

    Raises:
        BadArgument: for an option that cannot work, whatever the data.
    """

    stream: str = "permuted_inputs"
    stream_options: Mapping[str, Any] = field(default_factory=dict)
    dataset: str = "digits"
    dataset_options: Mapping[str, Any] = field(default_factory=dict)
    data_root: str = "data"
    download: bool = True
    model: str = "mlp"
    model_options: Mapping[str, Any] = field(default_factory=dict)
    base: str = "adamw"
    base_options: Mapping[str, Any] = field(default_factory=dict)
    meta: str = "adam"
    meta_options: Mapping[str, Any] = field(default_factory=dict)
    blocks: str | Mapping[str, Any] = "scalar"
    alpha0: float = 1e-4
    eta: float = 1e-3
    gamma: float = 0.999
    weight_decay: float = 0.0
    alpha_min: float | None = None
    alpha_max: float | None = None
    nonfinite: str = "raise"
    hessian: str = "free"
    seed: int = 0
    device: str = "cpu"
    strategy: str = "plain"
    strategy_options: Mapping[str, Any] = field(default_factory=dict)
    evaluate: bool = True
    threads: int = 1
    name: str | None = None

    def __post_init__(self) -> None:
        for option in dataclasses.fields(self):
            value = getattr(self, option.name)
            object.__setattr__(self, option.name, _plain(option.name, str(option.type), value))
        _check_numbers(self)

    @property
    def method(self) -> str:
        """The run's label: `name`, or base, meta and blocks, e.g. ``"adamw/adam layer"``.

        A strategy other than the plain loop is named behind it.
        """
        if self.name:
            return self.name
        blocks = self.blocks if isinstance(self.blocks, str) else "+".join(self.blocks)
        adaptive = f"{self.base}/{self.meta} {blocks}"
        if self.hessian != "free":
            adaptive += f", {self.hessian} Hessian"
        label = f"{self.base} fixed {self.alpha0:g}" if self.meta == "none" else adaptive
        return label if self.strategy == "plain" else f"{label}, {self.strategy}"

    def to_dict(self) -> dict[str, Any]:
        """The options as plain JSON values, under their names."""
        return json.loads(json.dumps({f.name: getattr(self, f.name) for f in _fields()}))

    def to_json(self) -> str:
        """The options as JSON text."""
        return json.dumps(self.to_dict(), indent=2)

    @classmethod
    def from_dict(cls, options: Mapping[str, Any]) -> RunConfig:
        """A config from `to_dict`'s form or from the content of a run's ``config.json``.

        Raises:
            BadArgument: for an unknown option, or as the class does.
        """
        known = [f.name for f in _fields()]
        kept = {name: value for name, value in options.items() if name not in (FACTS, "method")}
        for name, value in kept.items():
            if name not in known:
                bad(name, value, f"unknown option; known: {', '.join(known)}")
        return cls(**kept)

    @classmethod
    def from_json(cls, text: str) -> RunConfig:
        """A config from JSON text. Raises BadArgument if it is none."""
        try:
            options = json.loads(text)
        except ValueError as error:
            raise BadArgument(f"config: not JSON ({error}); pass a run's config.json") from None
        if not isinstance(options, dict):
            bad("config", options, "must be a JSON object of options")
        return cls.from_dict(options)

    @classmethod
    def from_file(cls, path: str | Path) -> RunConfig:
        """A config from a run's ``config.json``, or from the run folder that holds it."""
        file = Path(path)
        file = file / "config.json" if file.is_dir() else file
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "not a text file"
            raise BadArgument(
                f"config={str(path)!r}: {reason}; pass a run's config.json or its folder"
            ) from error
        return cls.from_json(text)

    def key(self, *, without: tuple[str, ...] = ()) -> str:
        """Ten hex digits that depend on what the run computes, and on nothing else.

        Args:
            without: further options to leave out, e.g. ``("seed",)`` to group a method's seeds.
        """
        options = self.to_dict()
        for name in (*NOT_IDENTITY, *without):
            del options[name]
        text = json.dumps(options, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:10]

    def __hash__(self) -> int:
        return hash(json.dumps(self.to_dict(), sort_keys=True))


def _fields() -> tuple[dataclasses.Field[Any], ...]:
    return dataclasses.fields(RunConfig)


def _plain(name: str, kind: str, value: Any) -> Any:
    """A value of the declared kind, copied so that later changes to it don't reach the config."""
    if isinstance(value, Mapping):
        require("Mapping" in kind, name, dict(value), "must not be a mapping")
        require(all(isinstance(k, str) for k in value), name, dict(value), "keys must be text")
        try:
            return json.loads(json.dumps(dict(value), allow_nan=False))
        except (TypeError, ValueError):
            bad(name, dict(value), "must be made of text, finite numbers, lists and mappings")
    require(not kind.startswith("Mapping"), name, value, "must be a mapping of options")
    if value is None and "None" in kind:
        return None
    if "str" in kind:
        require(isinstance(value, str) and value != "", name, value, "must be text")
    elif kind == "bool":
        require(isinstance(value, bool), name, value, "must be true or false")
    elif kind == "int":
        whole = isinstance(value, int) and not isinstance(value, bool)
        require(whole, name, value, "must be a whole number")
    elif "float" in kind:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        require(number and math.isfinite(value), name, value, "must be a finite number")
        return float(value)
    return value


def _check_numbers(config: RunConfig) -> None:
    check_numbers({name: getattr(config, name) for name in NUMBERS})
    low, high = config.alpha_min, config.alpha_max
    require(low is None or low >= 0, "alpha_min", low, "must not be negative")
    inside = (low or 0) <= config.alpha0 <= (math.inf if high is None else high)
    mend = f"must lie between alpha_min={low} and alpha_max={high}"
    require(inside, "alpha0", config.alpha0, mend)
    for name, choices in (("nonfinite", NONFINITE), ("hessian", HESSIANS)):
        value = getattr(config, name)
        require(value in choices, name, value, f"use one of {', '.join(choices)}")
    require(0 <= config.seed < 2**63, "seed", config.seed, "must lie in [0, 2^63)")
    require(config.threads >= 1, "threads", config.threads, "must be at least 1")
