"""Networks by name: the paper's CNN, an MLP, a linear map, or any ``package.module:factory``.

Adding one is a function or class, called as ``factory(input_shape, n_classes, **options)``::

    @MODELS.register("tiny")
    class Tiny(nn.Sequential): ...
"""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from clmeta.errors import bad, require
from clmeta.ground.checks import whole
from clmeta.ground.seeds import check_seed
from clmeta.lookup import Wanted, check_options, failing_as, takes
from clmeta.registry import Registry

Shape = tuple[int, int, int]
Factory = Callable[..., nn.Module]

MODELS: Registry[Factory] = Registry(
    "model",
    Wanted(
        "a function or class that makes networks: factory(input_shape, n_classes, **options)",
        takes(2),
    ),
)


def _sizes(argument: str, value: int | Sequence[int]) -> list[int]:
    zero_dim = getattr(value, "ndim", 1) == 0  # a tensor of one number says that it is iterable
    if isinstance(value, Iterable) and not isinstance(value, str) and not zero_dim:
        return [whole(argument, size, least=1) for size in value]
    return [whole(argument, value, least=1)]


@MODELS.register("cnn")
class CNN(nn.Module):
    """The paper's network for CIFAR-100: two convolutions, two linear layers.

    conv 3x3 pad 1, ReLU, maxpool 2, twice; linear, ReLU, linear (Sec. 7.2). Its layers with
    parameters are ``features.0``, ``features.3``, ``classifier.1``, ``classifier.3``.

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
        hidden = whole("hidden", hidden, least=1)
        mend = "the CNN needs images, (channels, height, width); use model mlp"
        require(len(input_shape) == 3, "input_shape", tuple(input_shape), mend)
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
        seed: of the initial weights, in [0, 2^63); torch's global generator is then left as it was.

    Raises:
        BadArgument: for an unknown name, an option that the factory does not take or refuses, or a
            factory that does not return a ``torch.nn.Module``.
    """
    factory = MODELS.get(name)
    input_shape = tuple(_sizes("input_shape", input_shape))
    n_classes = whole("n_classes", n_classes, least=1)
    seed = None if seed is None else check_seed(seed)
    options = {} if options is None else options
    require(isinstance(options, Mapping), "options", options, "must map keywords to values")
    check_options(factory, options, "model option", skip=2)
    try:
        inspect.signature(factory).bind(input_shape, n_classes, **options)
    except TypeError as error:
        bad("model", name, f"is called as factory(input_shape, n_classes, **options): {error}")
    except ValueError:  # no signature to be had
        pass
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            # Not torch.manual_seed, which would seed every CUDA device too.
            torch.default_generator.manual_seed(seed)
        with failing_as("model", name):
            model = factory(input_shape, n_classes, **options)
    if not isinstance(model, nn.Module):
        bad("model", name, f"made a {type(model).__name__}; it must return a torch.nn.Module")
    return model
