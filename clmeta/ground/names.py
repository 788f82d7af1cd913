"""What methods are called in tables, figures and folders."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from clmeta.errors import printable
from clmeta.ground.checks import NUMBERS
from clmeta.lookup import short_name, short_names

#: Entries that tell apart repetitions of a method, or places and times, but not methods.
NOT_METHOD = frozenset(
    {"seed", "imports", "data_root", "download", "device", "threads", "engine", "name", "method"}
    | {"checkpoint_every", "save_model"}
)
#: Bytes of a folder's name, of the 255 that file systems allow: others put theirs round it.
LONGEST_NAME = 180
#: What is found out while a run is set up; it follows from the rest.
DERIVED = "resolved"


def shown(value: Any) -> str:
    """An option's value in a few characters: ``0.001``, ``body=0.0001,head=0.001``."""
    if isinstance(value, Mapping):
        return ",".join(f"{name}={shown(each)}" for name, each in value.items())
    return f"{value:g}" if isinstance(value, float) else short_name(str(value))


def told_apart(value: Any, others: Iterable[Any]) -> str:
    """A value as `shown`, but so that it still differs from the others."""
    if isinstance(value, float | Mapping):
        return shown(value)
    return short_names([str(value), *map(str, others)])[str(value)]


def learner(config: Mapping[str, Any]) -> list[str]:
    """Base update and what moves its step sizes: ``adamw, adam, layer`` or ``adamw, fixed``."""
    base, meta = config["base"], config.get("meta") or "none"
    if meta == "none":
        return [short_name(base), "fixed"]
    blocks = config.get("blocks", "scalar")
    named = short_name(blocks) if isinstance(blocks, str) else "+".join(map(str, blocks))
    return [short_name(base), short_name(meta), named]


def learner_label(config: Mapping[str, Any]) -> str:
    """The same for people: ``adamw/adam layer`` or ``adamw fixed``."""
    base, meta, *blocks = learner(config)
    return " ".join([f"{base}/{meta}", *blocks]) if blocks else f"{base} {meta}"


def file_name(*words: str) -> str:
    """Words as the name of a file or folder; too long ones end in a digest of the whole."""
    name = re.sub(r"[^\w.+=-]+", "-", "-".join(words).replace("*", "rest"))
    whole = name.encode()
    if len(whole) <= LONGEST_NAME:
        return name
    digest = hashlib.sha256(whole).hexdigest()[:10]
    kept = whole[: LONGEST_NAME - len(digest) - 1].decode(errors="ignore")
    return f"{kept}-{digest}"


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested entries as ``{"stream_options.tasks": 10}``."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


def identity(config: Mapping[str, Any], ignore: Iterable[str] = ()) -> dict[str, Any]:
    """The entries that make the method: all but seed, places, devices and derived facts."""
    left_out = NOT_METHOD | {DERIVED} | set(ignore)
    return {
        key: value
        for key, value in flatten(config).items()
        if key not in left_out and key.split(".")[0] not in left_out
    }


def seed_of(config: Mapping[str, Any]) -> int | None:
    """The run's own seed, or one that stands deeper in the config, such as the stream's."""
    flat = flatten(config)
    for key, value in {"seed": flat.get("seed"), **flat}.items():
        if key.split(".")[-1] == "seed" and type(value) is int and abs(value) < 2**63:
            return value
    return None


def _stem(config: Mapping[str, Any]) -> str:
    """The name the config gives, or base/meta and blocks."""
    for key in ("name", "method"):
        if isinstance(config.get(key), str) and config[key]:
            return config[key]
    return learner_label(config) if "base" in config else ""


def method_labels(configs: Iterable[Mapping[str, Any]], ignore: Iterable[str] = ()) -> list[str]:
    """One label a run; two runs share it if and only if their methods are the same.

    The label is the config's ``name`` or ``method`` (else base, meta and blocks), followed by the
    entries in which runs of that name differ, e.g. ``"adamw/adam scalar, eta=0.01"``.

    Args:
        configs: the runs' configs.
        ignore: further entries, flat names or sections, that do not make a method.
    """
    configs = list(configs)
    identities = [identity(config, ignore) for config in configs]
    stems = [_stem(config) for config in configs]
    rivals: dict[str, dict[str, dict[str, Any]]] = {}
    for stem, own in zip(stems, identities, strict=True):
        rivals.setdefault(stem, {})[json.dumps(own, sort_keys=True, default=str)] = own
    differing = {stem: _differing(list(each.values())) for stem, each in rivals.items()}
    values = {
        stem: {key: [m[key] for m in rivals[stem].values() if key in m] for key in keys}
        for stem, keys in differing.items()
    }
    labels = []
    for stem, own in zip(stems, identities, strict=True):
        # A block's own number is told by what it is of; other keywords speak for themselves.
        short = {
            key: key if key.split(".")[0] in NUMBERS else key.split(".")[-1]
            for key in differing[stem]
        }
        tails = list(short.values())
        details = [
            f"{name if tails.count(name) == 1 else key}={told_apart(own[key], values[stem][key])}"
            for key, name in short.items()
            if key in own
        ]
        labels.append(printable(", ".join([part for part in (stem, *details) if part])) or "run")
    return labels


def _differing(methods: list[dict[str, Any]]) -> list[str]:
    """The entries in which methods differ."""
    keys = dict.fromkeys(key for method in methods for key in method)
    return [key for key in keys if any(m.get(key) != methods[0].get(key) for m in methods)]
