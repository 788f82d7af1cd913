"""Images and labels held once in memory, whatever file or loader they came from."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clmeta.errors import bad, require
from clmeta.ground.devices import as_device

SPLIT_EVERY = 5
#: Samples that are rendered at a time.
BLOCK = 64


class ArrayData:
    """A classification data set as uint8 tensors, N x C x H x W, with its train/test split.

    Args:
        x_train: uint8 images (N, C, H, W), or anything that `as_images` can turn into them.
        y_train: integer labels (N,), 0 to n_classes - 1, every class present.
        x_test: images of the same shape (M, C, H, W).
        y_test: labels (M,) of the same classes.
        name: what messages, descriptions and figures call the data.

    Raises:
        BadArgument: if shapes, lengths or labels do not fit together.
    """

    def __init__(
        self, x_train: Any, y_train: Any, x_test: Any, y_test: Any, *, name: str = "arrays"
    ) -> None:
        require(isinstance(name, str), "name", name, "must be text")
        self.name = name
        self.x_train = as_images(x_train, f"{name} x_train")
        self.x_test = as_images(x_test, f"{name} x_test")
        self.y_train = as_labels(y_train, f"{name} y_train")
        self.y_test = as_labels(y_test, f"{name} y_test")
        self._fingerprint: str | None = None
        for part, x, y in (
            ("train", self.x_train, self.y_train),
            ("test", self.x_test, self.y_test),
        ):
            require(len(x) > 0, f"{name} x_{part}", tuple(x.shape), "no images; give at least one")
            require(
                len(x) == len(y),
                f"{name} y_{part}",
                tuple(y.shape),
                f"there are {len(x)} images; give one label for each",
            )
        require(
            self.x_test.shape[1:] == self.x_train.shape[1:],
            f"{name} x_test",
            tuple(self.x_test.shape),
            f"training images are {tuple(self.x_train.shape[1:])}; give test images of that shape",
        )
        self.n_classes = _check_classes(self.y_train, self.y_test, name)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        channels, height, width = self.x_train.shape[1:]
        return channels, height, width

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.x_train.device

    @property
    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits that name the content: shapes, pixels, labels, split."""
        if self._fingerprint is None:
            digest = hashlib.sha256()
            for tensor in (self.x_train, self.y_train, self.x_test, self.y_test):
                digest.update(repr(tuple(tensor.shape)).encode())
                digest.update(tensor.cpu().numpy().tobytes())
            self._fingerprint = digest.hexdigest()[:16]
        return self._fingerprint

    def to(self, device: torch.device | str) -> ArrayData:
        """The same data on ``device``; this object itself if it is there already."""
        device = as_device(device)
        if device == self.device:
            return self
        moved = object.__new__(ArrayData)
        moved.__dict__.update(self.__dict__)
        for field in ("x_train", "y_train", "x_test", "y_test"):
            setattr(moved, field, getattr(self, field).to(device))
        return moved

    def describe(self) -> dict[str, Any]:
        """What a stream's description says about its data; JSON-able."""
        return {
            "name": self.name,
            "fingerprint": self.fingerprint,
            "n_train": len(self.x_train),
            "n_test": len(self.x_test),
            "n_classes": self.n_classes,
            "image_shape": list(self.image_shape),
        }

    def __repr__(self) -> str:
        shape = "x".join(str(size) for size in self.image_shape)
        return (
            f"ArrayData({self.name!r}: {len(self.x_train)} train + {len(self.x_test)} test "
            f"images of {shape}, {self.n_classes} classes)"
        )


def split_every_fifth(x: Any, y: Any) -> tuple[Any, Any, Any, Any]:
    """x_train, y_train, x_test, y_test: of each class, in file order, every fifth is for testing.

    Used where a source has no split of its own. No random numbers, so it is the same for ever.
    """
    labels = np.asarray(y)
    test = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        test[np.flatnonzero(labels == label)[SPLIT_EVERY - 1 :: SPLIT_EVERY]] = True
    if not test.any():
        bad(
            "dataset",
            f"{len(labels)} samples",
            f"no class has {SPLIT_EVERY} samples, so none can be set aside for testing; "
            "give training and test data yourself",
        )
    train = np.flatnonzero(~test)
    held_out = np.flatnonzero(test)
    return x[train], labels[train], x[held_out], labels[held_out]


def as_images(x: Any, argument: str) -> Tensor:
    """Contiguous uint8 N x C x H x W.

    Takes N x H x W, N x H x W x C or N x C x H x W (C of 1, 3 or 4; where both could be meant,
    arrays are read channels last and tensors channels first) or N x features. Pixels as in
    `as_uint8`.

    Raises:
        BadArgument: for another shape or range.
    """
    pixels = x if isinstance(x, Tensor) else _from_numpy(x, argument)
    shape = tuple(pixels.shape)
    axes = (1, 3) if isinstance(x, Tensor) else (3, 1)
    channels = next((axis for axis in axes if pixels.ndim == 4 and shape[axis] in (1, 3, 4)), None)
    if pixels.ndim == 2:
        pixels = pixels[:, None, None, :]
    elif pixels.ndim == 3:
        pixels = pixels[:, None]
    elif channels is None:
        bad(
            argument, shape, "give images as N x H x W x C or N x C x H x W with 1, 3 or 4 channels"
        )
    elif channels == 3:
        pixels = pixels.permute(0, 3, 1, 2)
    return as_uint8(pixels, argument).contiguous()


def as_uint8(pixels: Tensor, argument: str) -> Tensor:
    """The pixels in 8 bits.

    Floating point in [0, 1] is taken times 255 and rounded; whole numbers in 0..255 stay.

    Raises:
        BadArgument: for other values.
    """
    if pixels.dtype == torch.uint8:
        return pixels
    if pixels.dtype == torch.bool:
        return pixels.to(torch.uint8) * 255
    if pixels.is_complex() or pixels.numel() == 0:
        bad(
            argument, f"{pixels.dtype} {tuple(pixels.shape)}", "give at least one real-valued image"
        )
    low, high = float(pixels.min()), float(pixels.max())
    if pixels.is_floating_point() and low >= 0.0 and high <= 1.0:
        return (pixels * 255).round().to(torch.uint8)
    whole = bool((pixels == pixels.round()).all()) if pixels.is_floating_point() else True
    if not (whole and low >= 0.0 and high <= 255.0):
        bad(
            argument,
            f"values from {low:g} to {high:g}",
            "give pixels as uint8 0..255 or as finite floating point in [0, 1], not normalised",
        )
    return pixels.to(torch.uint8)


def as_labels(y: Any, argument: str) -> Tensor:
    """int64 labels (N,)."""
    labels = y if isinstance(y, Tensor) else _from_numpy(y, argument)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    require(labels.ndim == 1, argument, tuple(labels.shape), "give one label per image, shape (N,)")
    if labels.is_complex() or (
        labels.is_floating_point() and not bool((labels == labels.round()).all())
    ):
        bad(argument, str(labels.dtype), "give whole numbers as labels")
    return labels.to(torch.int64).contiguous()


def _from_numpy(values: Any, argument: str) -> Tensor:
    try:
        array = np.asarray(values)
    except (ValueError, TypeError, RuntimeError, RecursionError, OverflowError) as problem:
        bad(argument, type(values).__name__, f"is no array of numbers ({problem})")
    if array.dtype.kind not in "buif":
        bad(argument, f"{array.dtype} {array.shape}", "give numbers in an array of one shape")
    if array.dtype.kind in "ui" and array.dtype != np.uint8:
        array = array.astype(np.int64)
    return torch.from_numpy(np.require(array, requirements=["C", "W"]))


def _check_classes(y_train: Tensor, y_test: Tensor, name: str) -> int:
    lowest, highest = int(y_train.min()), int(y_train.max())
    present = torch.unique(y_train)
    if lowest < 0 or len(present) != highest + 1:
        bad(
            f"{name} y_train",
            f"{len(present)} different labels from {lowest} to {highest}",
            "number the classes 0 to n - 1 with each one present, for example by "
            "numpy.unique(labels, return_inverse=True)",
        )
    lowest_test, highest_test = int(y_test.min()), int(y_test.max())
    if lowest_test < 0 or highest_test > highest:
        bad(
            f"{name} y_test",
            f"labels from {lowest_test} to {highest_test}",
            f"the training labels are 0 to {highest}; number the test labels likewise",
        )
    return highest + 1
