"""Augmentations on blocks of uint8 tensors, with their random draws made beforehand."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad

from clmeta.lookup import Wanted
from clmeta.registry import Registry


class Augmentation(Protocol):
    """A random change of images, split in two so that draws never depend on the images."""

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """int64 (n, k): k numbers for each of n samples."""
        ...

    def apply(self, images: Tensor, draws: Tensor) -> Tensor:
        """Changed copies of uint8 images (n, C, H, W), given their draws (n, k)."""
        ...


def _draws_and_applies(found: Any) -> bool:
    parts = (getattr(found, "draw", None), getattr(found, "apply", None))
    return not isinstance(found, type) and all(map(callable, parts))


AUGMENTATIONS: Registry[Augmentation] = Registry(
    "augmentation",
    Wanted("an object with draw(n, generator) and apply(images, draws)", _draws_and_applies),
)


class CropFlip:
    """Random crop after zero padding, then a horizontal flip of every second image on average.

    The authors' augmentation for CIFAR100 (padding 4). Draws: row offset, column offset, flip.
    """

    def __init__(self, padding: int = 4, flip: bool = True) -> None:
        self.padding = padding
        self.flip = flip

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """int64 (n, 3): row offset and column offset in 0..2 padding, flip in 0..1."""
        draws = torch.randint(0, 2 * self.padding + 1, (n, 3), generator=generator)
        draws[:, 2] = torch.randint(0, 2, (n,), generator=generator) if self.flip else 0
        return draws

    def apply(self, images: Tensor, draws: Tensor) -> Tensor:
        """One gather from the padded images: row i comes from row i + offset, and so on."""
        n, channels, height, width = images.shape
        padded = pad(images, (self.padding,) * 4).flatten(2)
        row_length = width + 2 * self.padding
        column = torch.arange(width, device=images.device)
        columns = torch.where(draws[:, 2:3] == 1, width - 1 - column, column) + draws[:, 1:2]
        rows = torch.arange(height, device=images.device) + draws[:, 0:1]
        source = rows[:, :, None] * row_length + columns[:, None, :]
        source = source.view(n, 1, height * width).expand(n, channels, height * width)
        return padded.gather(2, source).view(n, channels, height, width)


AUGMENTATIONS.register("crop-flip")(CropFlip())
AUGMENTATIONS.register("crop", "Random crop after zero padding by 4 pixels.")(CropFlip(flip=False))
AUGMENTATIONS.register("flip", "A horizontal flip of every second image on average.")(
    CropFlip(padding=0)
)
