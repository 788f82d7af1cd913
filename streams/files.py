"""Datasets from the user's own files and objects: .npz, image folders, torch datasets."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clmeta.errors import bad, require
from clmeta.ground.checks import count_or_none
from clmeta.lookup import failing_as
from clmeta.streams.arraydata import ArrayData, as_uint8, split_every_fifth

NPZ_ARRAYS = ("x_train", "y_train", "x_test", "y_test")
IMAGE_ENDINGS = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm"})
LARGEST_SIDE = 8192
TEST_FOLDERS = ("test", "val", "valid", "validation")


def load_npz(path: Path) -> ArrayData:
    """The arrays ``x_train, y_train, x_test, y_test`` of an ``.npz`` file.

    Raises:
        BadArgument: if the file is missing or damaged, an array is missing, or they do not fit.
    """
    require(path.is_file(), "dataset", str(path), "no such file; check the path")
    arrays = {}
    try:
        with zipfile.ZipFile(path) as archive:
            held = [name.removesuffix(".npy") for name in archive.namelist()]
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in NPZ_ARRAYS if name in held}
    except Exception as problem:  # a damaged file is wrong in any way: it may claim 64 TB
        reason = (str(problem).strip() or type(problem).__name__).splitlines()[0]
        bad(
            "dataset",
            str(path),
            f"not a readable .npz file of plain arrays ({reason}); write it again with numpy.savez",
        )
    missing = [name for name in NPZ_ARRAYS if name not in held]
    if missing:
        bad(
            "dataset",
            str(path),
            f"holds {', '.join(held) or 'nothing'} but not {', '.join(missing)}; "
            "write it with numpy.savez(path, x_train=..., y_train=..., x_test=..., y_test=...)",
        )
    return ArrayData(*(arrays[name] for name in NPZ_ARRAYS), name=path.stem)


def load_image_folder(path: Path, *, image_size: int | None = None) -> ArrayData:
    """Images in one folder per class, under ``train/`` and ``test/`` or directly under ``path``.

    Class folders are numbered in sorted order. Grey images give one channel, anything else three.

    Args:
        path: the folder.
        image_size: side in pixels: the shorter side is resized to it and the middle cut out.

    Raises:
        BadArgument: if there are no class folders or images, sizes differ, or a file is damaged.
    """
    image_size = count_or_none("image_size", image_size)
    small = image_size is None or image_size <= LARGEST_SIDE
    require(small, "image_size", image_size, f"must be at most {LARGEST_SIDE:,} pixels")
    train = path / "train"
    test = next((path / name for name in TEST_FOLDERS if (path / name).is_dir()), None)
    if train.is_dir() and test is not None:
        x_train, y_train, classes = _read_classes(train, None, image_size)
        x_test, y_test, _ = _read_classes(test, classes, image_size)
        if x_train.shape[-1] != x_test.shape[-1]:
            x_train, x_test = _three_channels(x_train), _three_channels(x_test)
        return ArrayData(x_train, y_train, x_test, y_test, name=path.name)
    x, y, _ = _read_classes(train if train.is_dir() else path, None, image_size)
    return ArrayData(*split_every_fifth(x, y), name=path.name)


def _read_classes(
    folder: Path, known: list[str] | None, image_size: int | None
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    classes = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
    if not classes:
        bad("dataset", str(folder), "no class folders in it; lay images out as CLASS/image.png")
    for name in classes if known is not None else ():
        if known is not None and name not in known:
            bad("dataset", str(folder / name), "no such class among the training images; remove it")
    numbers = {name: number for number, name in enumerate(known or classes)}
    files = [
        (file, numbers[name])
        for name in classes
        for file in sorted((folder / name).rglob("*"))
        if file.suffix.lower() in IMAGE_ENDINGS and file.is_file()
    ]
    if not files:
        endings = " ".join(sorted(IMAGE_ENDINGS))
        bad("dataset", str(folder), f"no images in its class folders; known endings: {endings}")
    images = [_read_image(file, image_size) for file, _ in files]
    if any(image.ndim == 3 for image in images):
        images = [image if image.ndim == 3 else np.stack([image] * 3, -1) for image in images]
    for (file, _), image in zip(files, images, strict=True):
        if image.shape[:2] != images[0].shape[:2]:
            bad(
                "dataset",
                str(file),
                f"{image.shape[1]} x {image.shape[0]} pixels where the first image has "
                f"{images[0].shape[1]} x {images[0].shape[0]}; give image_size to resize them all",
            )
    x = np.stack(images)
    if x.ndim == 3:
        x = x[..., None]
    return x, np.array([label for _, label in files], dtype=np.int64), classes


def _three_channels(x: np.ndarray) -> np.ndarray:
    return x if x.shape[-1] == 3 else np.repeat(x, 3, axis=-1)


def _read_image(file: Path, image_size: int | None) -> np.ndarray:
    from PIL import Image, ImageOps

    try:
        with Image.open(file) as image:
            picture = image.convert("L" if image.mode in ("1", "L", "LA") else "RGB")
    except Exception as problem:  # likewise
        bad("dataset", str(file), f"not a readable image ({problem}); replace or remove it")
    if image_size is not None:
        picture = ImageOps.fit(picture, (image_size, image_size), Image.Resampling.BILINEAR)
    return np.asarray(picture)


def load_torch_dataset(dataset: Any) -> ArrayData:
    """A map-style torch dataset of (image, label) pairs, or a pair (train, test) of them.

    Every item is read once. Images may be PIL images, uint8 arrays or floating point in [0, 1].

    Raises:
        BadArgument: if it is not map-style, or items are no images of one shape with a label.
    """
    if isinstance(dataset, (tuple, list)) and len(dataset) == 2 and hasattr(dataset[0], "__len__"):
        x_train, y_train = _read_items(dataset[0])
        x_test, y_test = _read_items(dataset[1])
        name = type(dataset[0]).__name__
        return ArrayData(x_train, y_train, x_test, y_test, name=name)
    x, y = _read_items(dataset)
    return ArrayData(*split_every_fifth(x, y), name=type(dataset).__name__)


def _read_items(dataset: Any) -> tuple[Tensor, Tensor]:
    if not (hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")):
        bad(
            "dataset",
            type(dataset).__name__,
            "give a name, a path, or a map-style torch dataset (with __getitem__ and __len__)",
        )
    require(len(dataset) > 0, "dataset", type(dataset).__name__, "it is empty; give at least one")
    x: Tensor | None = None
    labels = torch.empty(len(dataset), dtype=torch.int64)
    for i in range(len(dataset)):
        with failing_as("dataset", type(dataset).__name__, f"reading item {i} fails"):
            item = dataset[i]
        try:
            image, label = item[0], item[1]
            labels[i] = int(label)
        except (TypeError, IndexError, KeyError, ValueError, RuntimeError, OverflowError):
            bad(
                "dataset",
                type(dataset).__name__,
                f"item {i} is no (image, label) pair of one label",
            )
        pixels = _one_image(image, f"dataset item {i}")
        if x is None:
            x = torch.empty((len(dataset), *pixels.shape), dtype=torch.uint8)
        if pixels.shape != x.shape[1:]:
            bad(
                f"dataset item {i}",
                tuple(pixels.shape),
                f"item 0 is {tuple(x.shape[1:])}; resize all images to one shape",
            )
        x[i] = pixels
    assert x is not None
    return x, labels


def _one_image(image: Any, argument: str) -> Tensor:
    """One image as uint8 C x H x W."""
    if isinstance(image, Tensor):
        pixels = image.detach().cpu()
        channels_last = False
    else:
        try:
            pixels = torch.from_numpy(np.array(image))
        except TypeError:
            bad(argument, type(image).__name__, "give a PIL image, an array or a tensor")
        channels_last = pixels.ndim == 3 and pixels.shape[2] in (1, 3, 4)
    if channels_last:
        pixels = pixels.permute(2, 0, 1)
    if pixels.ndim < 3:
        pixels = pixels.reshape((1,) * (3 - pixels.ndim) + tuple(pixels.shape))
    require(pixels.ndim == 3, argument, tuple(pixels.shape), "give one image of C x H x W")
    return as_uint8(pixels, argument)
