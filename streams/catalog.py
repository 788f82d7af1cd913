"""The streams by name, their constructors, and the settings used in the literature."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypedDict

import torch

from clmeta.errors import bad
from clmeta.ground.checks import count_or_none, whole
from clmeta.ground.seeds import check_seed
from clmeta.lookup import Wanted, describe, failing_as, takes
from clmeta.registry import Registry
from clmeta.streams.arraydata import ArrayData
from clmeta.streams.stream import Stream
from clmeta.streams.tasks import ClassTasks, LabelTasks, OneTask, PixelTasks

if TYPE_CHECKING:
    from typing_extensions import Unpack

STREAMS: Registry[Callable[..., Stream]] = Registry(
    "stream",
    Wanted(
        "a function that makes streams: (data, **options), seed and device among the options",
        takes(1, "seed", "device"),
    ),
)


class Common(TypedDict, total=False):
    """The keywords that every stream takes; `Stream` says what they mean."""

    seed: int
    batch_size: int
    epochs: int | None
    steps_per_task: int | None
    repeats: int
    augment: str | None
    device: torch.device | str | None


COMMON_DEFAULTS: dict[str, Any] = {
    "seed": 0,
    "batch_size": 1,
    "epochs": None,
    "steps_per_task": None,
    "repeats": 1,
    "augment": None,
    "device": None,
}


@STREAMS.register("abrupt_classes")
def abrupt_classes(
    data: ArrayData,
    tasks: int = 10,
    classes_per_task: int | None = None,
    head: str = "shared",
    **common: Unpack[Common],
) -> Stream:
    """Groups of new classes one after another, switched abruptly (paper, Sec. 7.2).

    Args:
        data: the data set.
        tasks: number of tasks.
        classes_per_task: classes in each; None shares out as many as the data has.
        head: ``shared`` relabels to 0..classes_per_task-1 in every task, ``growing`` numbers
            classes in order of appearance, ``full`` keeps the data's labels.
        common: see `Stream`.

    Raises:
        BadArgument: if the data has too few classes, or as `Stream`.
    """
    tasks = whole("tasks", tasks, least=1)
    classes_per_task = count_or_none("classes_per_task", classes_per_task)
    options = {"tasks": tasks, "classes_per_task": classes_per_task, "head": head}
    data, seed = _prepare("abrupt_classes", data, common)
    family = ClassTasks(data, tasks, classes_per_task, head, seed)
    options["classes_per_task"] = family.classes_per_task
    return Stream(data, family, name="abrupt_classes", options=options, **common)


@STREAMS.register("permuted_inputs")
def permuted_inputs(data: ArrayData, tasks: int = 10, **common: Unpack[Common]) -> Stream:
    """All images in every task, each time through another fixed permutation of their pixels.

    Positions are permuted, the same way in all channels; after augmentation, if there is any.

    Args:
        data: the data set.
        tasks: number of permutations.
        common: see `Stream`.

    Raises:
        BadArgument: as `Stream`.
    """
    tasks = whole("tasks", tasks, least=1)
    data, seed = _prepare("permuted_inputs", data, common)
    family = PixelTasks(data, tasks, seed)
    return Stream(data, family, name="permuted_inputs", options={"tasks": tasks}, **common)


@STREAMS.register("permuted_labels")
def permuted_labels(data: ArrayData, tasks: int = 10, **common: Unpack[Common]) -> Stream:
    """All images in every task, each time with another fixed permutation of the labels.

    Args:
        data: the data set.
        tasks: number of permutations.
        common: see `Stream`.

    Raises:
        BadArgument: as `Stream`.
    """
    tasks = whole("tasks", tasks, least=1)
    data, seed = _prepare("permuted_labels", data, common)
    family = LabelTasks(data, tasks, seed)
    return Stream(data, family, name="permuted_labels", options={"tasks": tasks}, **common)


@STREAMS.register("stationary")
def stationary(data: ArrayData, **common: Unpack[Common]) -> Stream:
    """One task: the whole data set as it is.

    Args:
        data: the data set.
        common: see `Stream`.

    Raises:
        BadArgument: as `Stream`.
    """
    data, seed = _prepare("stationary", data, common)
    return Stream(data, OneTask(data, 1, seed), name="stationary", options={}, **common)


def _prepare(name: str, data: Any, common: Common) -> tuple[ArrayData, int]:
    """The data on its device and the seed, after checking the keywords themselves."""
    for key, value in common.items():
        if key not in COMMON_DEFAULTS:
            known = ", ".join(stream_options(name))
            bad(key, value, f"unknown option of stream {name!r}; known: {known}")
    if not isinstance(data, ArrayData):
        bad("data", type(data).__name__, "give what clmeta.streams.load_dataset returns")
    seed = check_seed(common.get("seed", 0))
    device = common.get("device")
    return data if device is None else data.to(device), seed


def make_stream(name: str, data: ArrayData, /, **options: Any) -> Stream:
    """The registered stream or preset ``name`` over ``data``.

    Raises:
        BadArgument: for an unknown name or option, or as the stream's own constructor.
    """
    build = STREAMS.get(name)
    known = stream_options(name)
    for key, value in options.items():
        if key not in known:
            bad(key, value, f"unknown option of stream {name!r}; known: {', '.join(known)}")
    with failing_as("stream", name):
        stream = build(data, **options)
    if not isinstance(stream, Stream):
        bad("stream", name, f"made {describe(stream)}; it must return a clmeta.streams.Stream")
    return stream


def stream_options(name: str) -> dict[str, Any]:
    """Every option of a registered stream or preset, with its default; in order."""
    build = STREAMS.get(name)
    chosen = getattr(build, "options", None)
    if chosen is not None:
        return dict(chosen())
    own = inspect.signature(build).parameters.values()
    options = {p.name: p.default for p in own if p.default is not p.empty}
    if any(p.kind is p.VAR_KEYWORD for p in own):
        options |= {k: v for k, v in COMMON_DEFAULTS.items() if k not in options}
    return options


def stream_from_description(
    description: dict[str, Any], data: ArrayData, *, device: torch.device | str | None = None
) -> Stream:
    """The stream that `Stream.describe` described, over the same data.

    Raises:
        BadArgument: if the description is incomplete, or ``data`` is not the data it was made of.
    """
    try:
        name, options, made_of = (description[key] for key in ("stream", "options", "data"))
        fingerprint = made_of["fingerprint"]
    except (KeyError, TypeError) as problem:
        bad("description", description, f"{problem} is missing; give what Stream.describe returned")
    if data.fingerprint != fingerprint:
        bad(
            "data",
            f"{data.name} {data.fingerprint}",
            f"the stream was made of {made_of.get('name')} {fingerprint}; load that data",
        )
    return make_stream(name, data, device=device, **options)
