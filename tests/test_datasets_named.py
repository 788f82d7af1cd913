"""Named datasets, read from small files in their own format, and their download."""

import gzip
import hashlib
import pickle
import struct

import numpy as np
import pytest
from dataset_parts import pixels

from clmeta.errors import BadArgument
from clmeta.streams import load_dataset

# --- MNIST and Fashion-MNIST: idx files -----------------------------------------------------


def write_idx(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    path.write_bytes(header + array.astype(np.uint8).tobytes())


def write_mnist(root, folder):
    arrays = {
        "train-images-idx3-ubyte": pixels(30, 28, 28),
        "train-labels-idx1-ubyte": np.arange(30) % 10,
        "t10k-images-idx3-ubyte": pixels(10, 28, 28),
        "t10k-labels-idx1-ubyte": np.arange(10),
    }
    for name, array in arrays.items():
        write_idx(root / folder / "raw" / name, array)
    return arrays


@pytest.mark.parametrize(
    ("name", "folder"), [("mnist", "MNIST"), ("fashion-mnist", "FashionMNIST")]
)
def test_idx_files_are_read_without_any_download(tmp_path, name, folder):
    arrays = write_mnist(tmp_path, folder)
    data = load_dataset(name, data_root=tmp_path)
    assert (data.name, data.image_shape, data.n_classes) == (name, (1, 28, 28), 10)
    assert np.array_equal(data.x_train[:, 0].numpy(), arrays["train-images-idx3-ubyte"])
    assert np.array_equal(data.y_test.numpy(), arrays["t10k-labels-idx1-ubyte"])


def test_damaged_idx_files_are_named(tmp_path):
    write_mnist(tmp_path, "MNIST")
    path = tmp_path / "MNIST" / "raw" / "t10k-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(
        BadArgument, match=r"dataset='mnist': files in .*MNIST/raw are damaged .*delete them"
    ):
        load_dataset("mnist", data_root=tmp_path, download=False)


def test_labels_out_of_range_in_a_named_dataset_count_as_damage(tmp_path):
    write_mnist(tmp_path, "MNIST")
    write_idx(tmp_path / "MNIST" / "raw" / "t10k-labels-idx1-ubyte", np.full(10, 77))
    with pytest.raises(BadArgument, match=r"are damaged .*labels from 77 to 77"):
        load_dataset("mnist", data_root=tmp_path, download=False)


# --- CIFAR: pickled batches, with checksums -------------------------------------------------


def write_cifar(root, monkeypatch, name):
    """Small files in CIFAR's format; torchvision's checksums are set to theirs."""
    import torchvision.datasets

    kind = {"cifar10": torchvision.datasets.CIFAR10, "cifar100": torchvision.datasets.CIFAR100}[
        name
    ]
    folder = root / kind.base_folder
    folder.mkdir(parents=True)
    key = "labels" if name == "cifar10" else "fine_labels"
    n_classes = 10 if name == "cifar10" else 100

    def write(file_name, content):
        raw = pickle.dumps(content)
        (folder / file_name).write_bytes(raw)
        return hashlib.md5(raw).hexdigest()

    batches = {}
    for attribute in ("train_list", "test_list"):
        listed = []
        for file_name, _ in getattr(kind, attribute):
            batch = {"data": pixels(n_classes, 3072), key: list(range(n_classes))}
            listed.append([file_name, write(file_name, batch)])
            batches[file_name] = batch
        monkeypatch.setattr(kind, attribute, listed)
    meta = {**kind.meta, "md5": write(kind.meta["filename"], {kind.meta["key"]: ["a"] * n_classes})}
    monkeypatch.setattr(kind, "meta", meta)
    return folder, batches


@pytest.mark.parametrize(
    ("name", "n_train", "first"), [("cifar10", 50, "data_batch_1"), ("cifar100", 100, "train")]
)
def test_cifar_batches_are_read_without_any_download(tmp_path, monkeypatch, name, n_train, first):
    _, batches = write_cifar(tmp_path, monkeypatch, name)
    data = load_dataset(name, data_root=tmp_path)
    assert len(data.x_train) == n_train and data.image_shape == (3, 32, 32)
    assert data.n_classes == (10 if name == "cifar10" else 100)
    images = batches[first]["data"].reshape(-1, 3, 32, 32)
    assert np.array_equal(data.x_train[: len(images)].numpy(), images)


def test_damaged_cifar_files_are_not_taken_for_good_ones(tmp_path, monkeypatch):
    folder, _ = write_cifar(tmp_path, monkeypatch, "cifar10")
    (folder / "data_batch_3").write_bytes(b"nothing of the sort")
    with pytest.raises(
        BadArgument, match=r"'cifar10' is incomplete or damaged \(looked in .*cifar-10"
    ):
        load_dataset("cifar10", data_root=tmp_path, download=False)


# --- downloads ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "cifar10", "cifar100"])
def test_a_missing_dataset_says_where_it_looked_and_what_to_do(tmp_path, name):
    with pytest.raises(
        BadArgument, match=rf"data_root=.*'{name}' is not there \(looked in .*allow the"
    ):
        load_dataset(name, data_root=tmp_path / "none", download=False)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("name", ["mnist", "cifar100"])
def test_a_failed_download_says_why_and_what_to_do(tmp_path, monkeypatch, name):
    from urllib.error import URLError

    def no_network(*args, **kwargs):
        raise URLError("no route to host")

    monkeypatch.setattr("torchvision.datasets.utils.urllib.request.urlopen", no_network)
    with pytest.raises(
        BadArgument, match=rf"dataset='{name}': download into .* failed .*check the conn"
    ) as caught:
        load_dataset(name, data_root=tmp_path / "new")
    assert "no route to host" in str(caught.value) and "\n" not in str(caught.value)


def test_a_download_that_succeeds_is_used(tmp_path, monkeypatch):
    arrays = write_mnist(tmp_path / "server", "MNIST")

    def fetch(url, download_root, filename, md5):
        (tmp_path / "mine" / "MNIST" / "raw").mkdir(parents=True, exist_ok=True)
        source = tmp_path / "server" / "MNIST" / "raw" / filename.removesuffix(".gz")
        packed = gzip.compress(source.read_bytes())
        (tmp_path / "mine" / "MNIST" / "raw" / source.name).write_bytes(gzip.decompress(packed))

    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", fetch)
    data = load_dataset("mnist", data_root=tmp_path / "mine")
    assert np.array_equal(data.x_test[:, 0].numpy(), arrays["t10k-images-idx3-ubyte"])
