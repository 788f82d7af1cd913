"""Datasets by name or path: one table, one function that loads any of them into memory."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from clmeta.errors import BadArgument, ClmetaError, bad, require
from clmeta.ground.checks import count_or_none
from clmeta.ground.reading import as_path
from clmeta.lookup import Wanted, failing_as, takes
from clmeta.registry import Registry
from clmeta.streams.arraydata import ArrayData, split_every_fifth
from clmeta.streams.files import load_image_folder, load_npz, load_torch_dataset

Loader = Callable[[Path, bool], ArrayData]
DATASETS: Registry[Loader] = Registry(
    "dataset", Wanted("a function that loads data: (data_root, download)", takes(2))
)


def load_dataset(
    dataset: Any,
    *,
    data_root: str | os.PathLike[str] = "data",
    download: bool = True,
    image_size: int | None = None,
) -> ArrayData:
    """A whole data set in memory, as uint8 tensors.

    Args:
        dataset: a registered name (``DATASETS.names()``); ``package.module:name`` of a function
            (data_root, download) that returns an ArrayData or anything else of this list; the path
            of an ``.npz`` file with ``x_train, y_train, x_test, y_test``; the path of an image
            folder (``train/CLASS/*.png`` and ``test/CLASS/*.png``, or ``CLASS/*.png``); a map-style
            torch dataset of (image, label), or a pair (train, test) of them; an ArrayData.
        data_root: where named datasets are kept, and downloaded to.
        download: fetch a named dataset that is not under ``data_root``.
        image_size: side in pixels to which an image folder's images are resized and cropped.

    Without a split of its own a source gives every fifth sample of each class to the test set.

    Raises:
        BadArgument: for an unknown name, a missing or corrupt file, a failed download, labels out
            of range; the message says what to do.
    """
    root = as_path("data_root", data_root)
    require(isinstance(download, bool), "download", download, "must be true or false")
    image_size = count_or_none("image_size", image_size)
    if isinstance(dataset, ArrayData):
        return dataset
    if not isinstance(dataset, (str, os.PathLike)):
        return load_torch_dataset(dataset)
    if isinstance(dataset, str) and dataset.lower() in DATASETS:
        return DATASETS.get(dataset.lower())(root, download)
    path = as_path("dataset", dataset)
    if path.is_dir():
        return load_image_folder(path, image_size=image_size)
    if path.suffix == ".npz":
        return load_npz(path)
    if isinstance(dataset, str) and ":" in dataset and not path.exists():
        load = DATASETS.get(dataset)
        with failing_as("dataset", dataset):
            loaded = load(root, download)
        try:
            return load_dataset(loaded)
        except BadArgument as error:
            raise BadArgument(f"dataset={dataset!r}: what it loads is no data: {error}") from error
    if isinstance(dataset, os.PathLike) or path.exists() or len(path.parts) > 1:
        found = "is no .npz file and no folder" if path.exists() else "does not exist"
        bad(
            "dataset", str(path), f"{found}; give an .npz file, an image folder or a dataset's name"
        )
    DATASETS.get(dataset, "dataset")
    raise AssertionError("unreachable")  # pragma: no cover


@DATASETS.register(
    "digits", "1,797 images of digits, 1 x 8 x 8, 10 classes; comes with scikit-learn"
)
def digits(data_root: Path, download: bool) -> ArrayData:
    """The digits of scikit-learn, 0..16 stretched to 0..255; every fifth of a class for testing."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    pixels = np.round(bunch.images * (255 / 16)).astype(np.uint8)
    return ArrayData(*split_every_fifth(pixels, bunch.target), name="digits")


def _register_torchvision(name: str, class_name: str, folder: str, about: str) -> None:
    """Enter one of torchvision's datasets that keep ``.data`` and ``.targets`` in memory."""

    def load(data_root: Path, download: bool) -> ArrayData:
        import torchvision.datasets

        kind = getattr(torchvision.datasets, class_name)
        train, test = (
            _open_torchvision(kind, name, data_root, data_root / folder, part, download)
            for part in (True, False)
        )
        try:
            return ArrayData(train.data, train.targets, test.data, test.targets, name=name)
        except ClmetaError as problem:
            _corrupt(name, data_root / folder, str(problem))

    DATASETS.register(name, about)(load)


def _open_torchvision(
    kind: Any, name: str, data_root: Path, folder: Path, train: bool, download: bool
) -> Any:
    try:
        return kind(str(data_root), train=train, download=False)
    except Exception as problem:
        missing = isinstance(problem, RuntimeError) and "not found" in str(problem)
        if not (missing or isinstance(problem, FileNotFoundError)):
            _corrupt(name, folder, _say(problem))
        if not download:
            what = "is incomplete or damaged" if folder.exists() else "is not there"
            bad(
                "data_root",
                str(data_root),
                f"dataset {name!r} {what} (looked in {folder}); allow the download, or put "
                "torchvision's files there",
            )
    try:
        data_root.mkdir(parents=True, exist_ok=True)
        return kind(str(data_root), train=train, download=True)
    except Exception as problem:
        bad(
            "dataset",
            name,
            f"download into {folder} failed ({_say(problem)}); check the connection and that the "
            "folder can be written, or put torchvision's files there and switch the download off",
        )


def _corrupt(name: str, folder: Path, reason: str) -> NoReturn:
    bad("dataset", name, f"files in {folder} are damaged ({reason}); delete them and load again")


def _say(problem: BaseException) -> str:
    lines = str(problem).strip().splitlines()
    said = f"{type(problem).__name__}: {lines[-1].strip()}" if lines else type(problem).__name__
    return said[:200]


_register_torchvision(
    "mnist", "MNIST", "MNIST/raw", "60,000 + 10,000 images of digits, 1 x 28 x 28, 10 classes"
)
_register_torchvision(
    "fashion-mnist",
    "FashionMNIST",
    "FashionMNIST/raw",
    "60,000 + 10,000 images of clothing, 1 x 28 x 28, 10 classes",
)
_register_torchvision(
    "cifar10",
    "CIFAR10",
    "cifar-10-batches-py",
    "50,000 + 10,000 photographs, 3 x 32 x 32, 10 classes",
)
_register_torchvision(
    "cifar100",
    "CIFAR100",
    "cifar-100-python",
    "50,000 + 10,000 photographs, 3 x 32 x 32, 100 classes",
)
