"""Names for methods, from the config entries in which runs differ."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

#: Entries that tell apart repetitions of a method, or places and times, but not methods.
NOT_METHOD = frozenset({"seed", "data_root", "download", "device", "threads", "name", "method"})
#: What is found out while a run is set up; it follows from the rest.
DERIVED = "resolved"


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
        if key.split(".")[-1] == "seed" and isinstance(value, int):
            return value
    return None


def _stem(config: Mapping[str, Any]) -> str:
    """The name the config gives, or base/meta and blocks."""
    for key in ("name", "method"):
        if isinstance(config.get(key), str) and config[key]:
            return config[key]
    if "base" not in config:
        return ""
    if config.get("meta") in (None, "none"):
        return f"{config['base']} fixed"
    blocks = config.get("blocks", "scalar")
    named = blocks if isinstance(blocks, str) else "+".join(map(str, blocks))
    return f"{config['base']}/{config['meta']} {named}"


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


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
    labels = []
    for stem, own in zip(stems, identities, strict=True):
        rivals = [other for s, other in zip(stems, identities, strict=True) if s == stem]
        keys = dict.fromkeys(key for other in rivals for key in other)
        differing = [key for key in keys if any(r.get(key) != own.get(key) for r in rivals)]
        short = {key: key.split(".")[-1] for key in differing}
        tails = list(short.values())
        details = [
            f"{short[key] if tails.count(short[key]) == 1 else key}={_shown(own[key])}"
            for key in differing
            if key in own
        ]
        labels.append(", ".join([part for part in (stem, *details) if part]) or "run")
    return labels
