"""Networks by name: the paper's CNN, an MLP, a linear map, or any ``package.module:factory``.

Adding one is a function or class, called as ``factory(input_shape, n_classes, **options)``::

    @MODELS.register("tiny")
    class Tiny(nn.Sequential): ...
"""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from clmeta.errors import BadArgument, bad, require
from clmeta.lookup import check_options, load_object
from clmeta.registry import Registry

Shape = tuple[int, int, int]
Factory = Callable[..., nn.Module]

MODELS: Registry[Factory] = Registry("model")


def _sizes(argument: str, value: int | Sequence[int]) -> list[int]:
    sizes = list(value) if isinstance(value, Sequence) else [value]
    whole = all(type(size) is int and size > 0 for size in sizes)
    require(whole, argument, value, "must be positive whole numbers, such as 64 or [64, 64]")
    return sizes


@MODELS.register("cnn")
class CNN(nn.Module):
    """The paper's network for CIFAR-100: two convolutions, two linear layers.

    conv 3x3 pad 1, ReLU, maxpool 2, twice; linear, ReLU, linear (protocols.md, section 1). Its
    layers with parameters are ``features.0``, ``features.3``, ``classifier.1``, ``classifier.3``.

    Args:
        input_shape: (channels, height, width); height and width at least 4 pixels.
        n_classes: output units.
        channels: output channels of the two convolutions.
        hidden: units of the hidden linear layer.
    """

    def __init__(
        self,
        input_shape: Shape,
        n_classes: int,
        channels: Sequence[int] = (16, 32),
        hidden: int = 128,
    ) -> None:
        super().__init__()
        widths = _sizes("channels", channels)
        require(len(widths) == 2, "channels", channels, "must be two numbers, such as [16, 32]")
        (hidden,) = _sizes("hidden", [hidden])
        depth, height, width = input_shape
        if min(height, width) < 4:
            bad("input_shape", input_shape, "the CNN needs at least 4 x 4 pixels; use model mlp")
        self.features = nn.Sequential(
            nn.Conv2d(depth, widths[0], 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(widths[0], widths[1], 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Linear(widths[1] * (height // 4) * (width // 4), hidden),
            nn.ReLU(),
            nn.Linear(hidden, n_classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Logits, shape (batch, n_classes), from images (batch, channels, height, width)."""
        return self.classifier(self.features(x))


@MODELS.register("mlp")
class MLP(nn.Module):
    """Linear layers with ReLU between them: ``hidden.0``, ``hidden.1``, ..., ``output``.

    Args:
        input_shape: shape of one input, flattened.
        n_classes: output units.
        hidden: units of each hidden layer.
    """

    def __init__(
        self, input_shape: Shape, n_classes: int, hidden: int | Sequence[int] = (64, 64)
    ) -> None:
        super().__init__()
        sizes = [math.prod(input_shape), *_sizes("hidden", hidden)]
        pairs = itertools.pairwise(sizes)
        self.hidden = nn.ModuleList(nn.Linear(wide, narrow) for wide, narrow in pairs)
        self.output = nn.Linear(sizes[-1], n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits, shape (batch, n_classes)."""
        x = x.flatten(1)
        for layer in self.hidden:
            x = torch.relu(layer(x))
        return self.output(x)


@MODELS.register("linear")
class Linear(nn.Module):
    """One linear layer, ``output``.

    Args:
        input_shape: shape of one input, flattened.
        n_classes: output units.
    """

    def __init__(self, input_shape: Shape, n_classes: int) -> None:
        super().__init__()
        self.output = nn.Linear(math.prod(input_shape), n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits, shape (batch, n_classes)."""
        return self.output(x.flatten(1))


def model_factory(name: str) -> Factory:
    """The factory registered as ``name`` or found at ``package.module:factory``.

    Raises:
        BadArgument: for an unknown name (listing the known ones) or an import that fails.
    """
    if isinstance(name, str) and ":" in name:
        factory = load_object(name, "model")
        require(callable(factory), "model", name, "must name a function or class that makes models")
        return factory
    try:
        return MODELS.get(name)
    except BadArgument as error:
        raise BadArgument(f"{error}, or package.module:factory") from None


def make_model(
    name: str,
    input_shape: Sequence[int],
    n_classes: int,
    options: Mapping[str, Any] | None = None,
    *,
    seed: int | None = None,
) -> nn.Module:
    """Build a network with weights drawn from a seed of their own.

    Args:
        name: a registered name or ``package.module:factory``.
        input_shape: (channels, height, width) of one input.
        n_classes: output units.
        options: keywords of the factory.
        seed: of the initial weights; torch's global generator is then left as it was.

    Raises:
        BadArgument: for an unknown name, an option that the factory does not take or refuses, or a
            factory that does not return a ``torch.nn.Module``.
    """
    factory = model_factory(name)
    options = dict(options or {})
    check_options(factory, options, "model option", skip=2)
    try:
        inspect.signature(factory).bind(tuple(input_shape), n_classes, **options)
    except TypeError as error:
        bad("model", name, f"is called as factory(input_shape, n_classes, **options): {error}")
    except ValueError:  # no signature to be had
        pass
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            # Not torch.manual_seed, which would seed every CUDA device too.
            torch.default_generator.manual_seed(seed)
        model = factory(tuple(input_shape), n_classes, **options)
    if not isinstance(model, nn.Module):
        bad("model", name, f"made a {type(model).__name__}; it must return a torch.nn.Module")
    return model
