"""The paper's non-stationary CIFAR100 experiment as a sweep (Sec. 7.2).

Ten tasks of ten classes, batch size one, one pass, a shared head whose labels change meaning at
each abrupt switch. The rules follow the conventions of the authors' experiment code, under which
their published numbers were made: Adam's first moment is accumulated and not bias-corrected, SGDm
steps with the momentum from before the current gradient, Lion has momentum 0.9 and interpolation
0.99.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from clmeta.errors import bad, require
from clmeta.lookup import Wanted
from clmeta.registry import Registry
from clmeta.sweep.spec import SweepSpec

ADAM = {"accumulate": True}
LION = {"rho": 0.9, "c": 0.99}
ADAPTIVE = ("scalar", "head")


def decades(first: int, last: int) -> tuple[float, ...]:
    """1, 2 and 5 times 10^e for e in [first, last)."""
    return tuple(float(f"{digit}e{e}") for e in range(first, last) for digit in (1, 2, 5))


@dataclass(frozen=True)
class Row:
    """One base update of the experiment with the meta update and settings published for it.

    Args:
        published: the row's name in the published curves.
        base, meta: rules.
        alpha0, eta, weight_decay: settings of the adaptive runs; the fixed ones share the last.
        grid: fixed step sizes, three per decade round a good one.
        base_options, meta_options: the authors' conventions.
    """

    published: str
    base: str
    meta: str
    alpha0: float
    eta: float
    weight_decay: float
    grid: tuple[float, ...]
    base_options: Mapping[str, Any] = field(default_factory=dict)
    meta_options: Mapping[str, Any] = field(default_factory=dict)

    def methods(self) -> list[dict[str, Any]]:
        """Sweep methods: the grid of fixed step sizes, then scalar and the paper's two blocks."""
        shared = {
            "base": self.base,
            "base_options": dict(self.base_options),
            "weight_decay": self.weight_decay,
        }
        adaptive = {
            **shared,
            "meta": self.meta,
            "meta_options": dict(self.meta_options),
            "alpha0": self.alpha0,
            "eta": self.eta,
        }
        fixed = {**shared, "meta": "none", "grid": {"alpha0": list(self.grid)}}
        return [fixed, *({**adaptive, "blocks": blocks} for blocks in ADAPTIVE)]


ROWS: Registry[Row] = Registry(
    "base update", Wanted("a clmeta.sweep.protocol.Row", lambda found: isinstance(found, Row))
)
ROWS.register("adamw", "AdamW base, Adam meta")(
    Row("AdamW", "adamw", "adam", 1e-4, 1e-3, 0.1, decades(-5, -2), ADAM, ADAM)
)
ROWS.register("rmsprop", "RMSprop base and meta")(
    Row("RMSProp", "rmsprop", "rmsprop", 1e-3, 1e-2, 0.0, decades(-5, -2))
)
ROWS.register("lion", "Lion base and meta")(
    Row("Lion", "lion", "lion", 1e-4, 1e-3, 0.01, decades(-6, -3), LION, LION)
)
ROWS.register("sgdm", "SGDm base, Adam meta")(
    Row("SGDm", "sgdm", "adam", 1e-2, 1e-3, 0.0, decades(-4, -1), {"stale": True}, ADAM)
)


def figure_4(
    bases: Sequence[str] = ("adamw",),
    seeds: Sequence[int] = range(5),
    *,
    dataset: str = "cifar100",
    data_root: str = "data",
    download: bool = True,
    device: str = "cpu",
    imports: Sequence[str] = (),
    tasks: int = 10,
    classes_per_task: int = 10,
    steps_per_task: int | None = None,
) -> SweepSpec:
    """Every run behind the paper's Figure 4, for the base updates named.

    Args:
        bases: names in `ROWS`.
        seeds: of class order, sample order, augmentation and initial weights.
        dataset: ``"cifar100"``, or any data of its shape by name or path.
        data_root, download, device, imports: as in `clmeta.runs.config.RunConfig`.
        tasks, classes_per_task: 10 and 10 in the paper, which also has 5 and 20.
        steps_per_task: None for one pass over each task's images.

    Raises:
        BadArgument: for an unknown base, one named twice, or no seed.
    """
    require(len(bases) > 0, "bases", list(bases), f"name some of {', '.join(ROWS.names())}")
    require(len(seeds) > 0, "seeds", list(seeds), "give at least one, e.g. 0-4")
    if len(set(bases)) < len(bases):
        bad("bases", list(bases), "name each base update once")
    rows = [ROWS.get(name, "bases") for name in bases]
    stream: dict[str, Any] = {"tasks": tasks, "classes_per_task": classes_per_task}
    if steps_per_task is not None:
        stream["steps_per_task"] = steps_per_task
    options = {
        "stream": "cifar100-10x10",
        "stream_options": stream,
        "dataset": dataset,
        "data_root": data_root,
        "download": download,
        "device": device,
        "imports": list(imports),
        "model": "cnn",
        "gamma": 0.999,
        "nonfinite": "skip",
    }
    methods = [method for row in rows for method in row.methods()]
    return SweepSpec(options=options, methods=methods, seeds=list(seeds))
