"""Folders of runs: readable, and of a sweep's runs different wherever what is computed differs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from clmeta.ground.names import file_name, learner, shown
from clmeta.lookup import short_name
from clmeta.runs.config import NOT_IDENTITY, OPTIONS, RunConfig
from clmeta.runs.options import STEPS
from clmeta.runs.parse import write_value

#: Most letters of a folder's name before the seed, and of one option's value in it.
LONGEST, LONGEST_VALUE = 120, 24
#: What the name says anyhow.
NAMED = ("base", "meta", "blocks", "alpha0", "seed", *NOT_IDENTITY)


def run_folder(output: Path, config: RunConfig) -> Path:
    """A folder that depends on what the run computes: ``adamw-fixed-0.0001-seed-0-<key>``.

    Options that differ from the default are named, whether they are swept or not, so that a
    larger sweep finds the runs of a smaller one: ``adamw-adam-layer-0.0001-eta=0.01-seed-0-<key>``.
    """
    words = [*learner(config.to_dict()), shown(config.alpha0)]
    for word in _differing(config):
        if len("-".join([*words, word])) <= LONGEST:
            words.append(word)
    return output / "-".join([file_name(*words), file_name("seed", str(config.seed), config.key())])


def _differing(config: RunConfig) -> list[str]:
    """``eta=0.01``, ``tasks=5``, ...: options that differ from the default, step sizes' first."""
    options = config.to_dict()
    found = []
    for name in sorted(OPTIONS, key=lambda name: OPTIONS[name].panel != STEPS):
        if name in NAMED or options[name] == OPTIONS[name].default:
            continue
        entries = options[name] if name.endswith("_options") else {name: options[name]}
        found += [f"{key}={_short(value)}" for key, value in entries.items()]
    return found


def _short(value: Any) -> str:
    if isinstance(value, list):
        return "+".join(map(_short, value))[:LONGEST_VALUE]
    text = Path(short_name(value)).stem if isinstance(value, str) else write_value(value)
    return text[:LONGEST_VALUE]


def default_output(configs: Sequence[RunConfig]) -> Path:
    """``runs/`` and a name made of what is done, but for the seeds: more seeds join the others."""
    methods = sorted({config.key(without=("seed",)) for config in configs})
    digest = methods[0]
    if len(methods) > 1:
        digest = hashlib.sha256(" ".join(methods).encode()).hexdigest()
    first = configs[0]
    words = [short_name(first.stream), Path(short_name(first.dataset)).stem]
    words += learner(first.to_dict()) if len(methods) == 1 else [f"{len(methods)}-methods"]
    return Path("runs") / f"{file_name(*words)}-{digest[:6]}"


def seed_folders(output: Path, configs: Iterable[RunConfig]) -> list[Path]:
    """``seed-N`` for each run of one method."""
    return [output / f"seed-{config.seed}" for config in configs]
