"""What a run trains with, built from its config and checked: stream, network, optimiser."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from clmeta.blocks import FINE, partition_names
from clmeta.errors import BadArgument, ClmetaError, bad
from clmeta.ground.checks import NUMBERS
from clmeta.ground.devices import as_device
from clmeta.ground.seeds import derive_seed
from clmeta.lookup import check_options, failing_as
from clmeta.models import make_model
from clmeta.optim.optimizer import MetaOptimize
from clmeta.rules import Rule, update_class
from clmeta.runs.config import FACTS, OPTIONS, RunConfig
from clmeta.runs.imports import find_from_here, import_modules
from clmeta.runs.parse import among
from clmeta.runs.trust import names_code
from clmeta.strategies.entries import STRATEGIES
from clmeta.strategies.registry import COMMON

if TYPE_CHECKING:
    from clmeta.streams import ArrayData, Stream


@dataclass(frozen=True)
class Prepared:
    """Everything that a run trains with, built and checked; nothing has been learnt yet."""

    config: RunConfig
    stream: Stream
    model: nn.Module
    optimizer: MetaOptimize

    def contents(self) -> dict[str, Any]:
        """What ``config.json`` holds: the options, the method's label, and the facts."""
        config = self.config
        return {**config.to_dict(), "method": config.method, FACTS: self.facts()}

    def facts(self) -> dict[str, Any]:
        """What the config came to: the stream as drawn, blocks, number of weights."""
        groups = zip(self.optimizer.block_names, self.optimizer.param_groups, strict=True)
        return {
            "stream": self.stream.describe(),
            "blocks": {name: sum(p.numel() for p in g["params"]) for name, g in groups},
            "parameters": sum(p.numel() for p in self.model.parameters()),
        }


def prepare(config: RunConfig, data: ArrayData | None = None) -> Prepared:
    """Build a run's stream, network and optimiser, which checks all of its options.

    Raises:
        BadArgument: naming option, value and mend.
    """
    import_modules(config.imports)
    if names_code(config.to_dict()):
        find_from_here()  # what it loads may import more, later
    strategy = STRATEGIES.get(config.strategy)
    check_options(strategy, config.strategy_options, "strategy option", skip=3, hidden=COMMON)
    device = as_device(config.device)
    stream = make_config_stream(config, data, device)
    seed = derive_seed(config.seed, "model")
    options = config.model_options
    model = make_model(config.model, stream.input_shape, stream.n_classes, options, seed=seed)
    model.to(device)
    _check_output(config, model, stream)
    return Prepared(config, stream, model, make_optimizer(config, model))


def make_config_stream(
    config: RunConfig, data: ArrayData | None, device: torch.device | str
) -> Stream:
    """The config's stream over its data set (read once a process) or over ``data``."""
    from clmeta.streams import STREAMS, make_stream

    STREAMS.get(config.stream)
    if data is None:
        data = load_data(config)
    return make_stream(
        config.stream, data, **{"seed": config.seed, "device": device, **config.stream_options}
    )


def load_data(config: RunConfig) -> ArrayData:
    """The config's data set, read once a process."""
    options = json.dumps(dict(config.dataset_options), sort_keys=True)
    return _load(config.dataset, config.data_root, config.download, options)


def make_optimizer(config: RunConfig, model: nn.Module) -> MetaOptimize:
    """MetaOptimize over the model's parameters as the config says.

    Raises:
        BadArgument: for options that cannot work; a torch optimiser's own complaints name the base.
    """
    base = _rule("base", config.base, config.base_options)
    meta = "none" if config.meta == "none" else _rule("meta", config.meta, config.meta_options)
    params, blocks = _parameters(config, model.named_parameters())
    numbers = {name: getattr(config, name) for name in NUMBERS}
    usual = {name: OPTIONS[name].default for name, v in numbers.items() if isinstance(v, Mapping)}
    try:
        return MetaOptimize(
            params,
            base=base,
            meta=meta,
            blocks=blocks,
            alpha_min=config.alpha_min,
            alpha_max=config.alpha_max,
            nonfinite=config.nonfinite,
            hessian=config.hessian,
            engine=config.engine,
            **{**numbers, **usual},
        )
    except (TypeError, ValueError) as error:
        if isinstance(base, Rule) or (isinstance(error, ClmetaError) and not error.__cause__):
            raise
        shown = ", ".join(f"{name}={value!r}" for name, value in config.base_options.items())
        theirs = error.__cause__ or error
        mend = f"does not take the base options {shown or 'none'} ({theirs}); change them"
        raise BadArgument(f"base={config.base!r}: {mend}") from error


def _parameters(config: RunConfig, named: Iterable[tuple[str, nn.Parameter]]) -> tuple[Any, Any]:
    """Parameters and blocks as MetaOptimize takes them: a group a block, where numbers differ."""
    own = {n: v for n in NUMBERS if isinstance(v := getattr(config, n), Mapping)}
    if not own:
        return named, config.blocks
    params = dict(named)
    partition = partition_names(params, config.blocks)
    groups: list[dict[str, Any]] = [
        {"name": block, "params": [(name, params[name]) for name in names]}
        for block, names in partition.items()
    ]
    for option, values in own.items():
        for block in values:
            if block not in (*partition, "*"):
                bad(option, dict(values), f"no block {block!r}; {among(block, [*partition, '*'])}")
        rest = values.get("*", OPTIONS[option].default)
        for group in groups:
            group[option] = values.get(group["name"], rest)
    return groups, config.blocks if config.blocks in FINE else "scalar"


@functools.lru_cache(maxsize=2)
def _load(dataset: str, root: str, download: bool, options_text: str) -> ArrayData:
    from clmeta.streams import load_dataset

    options = json.loads(options_text)
    check_options(load_dataset, options, "dataset option", skip=1, hidden=("data_root", "download"))
    return load_dataset(dataset, data_root=root, download=download, **options)


def _rule(level: str, name: str, options: Mapping[str, Any]) -> Any:
    """A rule, or for the base ``package.module:name`` of a rule or torch optimiser."""
    kind = update_class(name, level)
    check_options(kind, options, f"{level} option", hidden=("params", "lr"))
    if not (isinstance(kind, type) and issubclass(kind, Rule)):
        return functools.partial(kind, **options)
    with failing_as(level, name):
        return kind(**options)


def _check_output(config: RunConfig, model: nn.Module, stream: Stream) -> None:
    """One forward pass of two images, before anything is written: shapes must fit."""
    x, _ = stream.test_set(0)
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            output = model(x[:2])
    except ClmetaError:
        raise
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        mend = f"fails on images of shape {stream.input_shape}: {lines[0]}"
        raise BadArgument(
            f"model={config.model!r}: {mend}; choose a model for such images"
        ) from None
    finally:
        model.train(was_training)
    expected = (len(x[:2]), stream.n_classes)
    if tuple(output.shape) != expected:
        found = f"output has shape {tuple(output.shape)} for 2 images"
        bad("model", config.model, f"{found}; it must be (batch, n_classes) = {expected}")
