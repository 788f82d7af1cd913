"""Datasets by name, path or object; named ones are read from small files in their own format."""

import gzip
import hashlib
import pickle
import struct
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import TensorDataset

from clmeta.errors import BadArgument
from clmeta.streams import DATASETS, ArrayData, load_dataset

RNG = np.random.default_rng(0)


def pixels(*shape):
    return RNG.integers(0, 256, shape, dtype=np.uint8)


# ---- .npz ---------------------------------------------------------------------------------------


def write_npz(path, **changes):
    arrays = {
        "x_train": pixels(12, 6, 5, 3),
        "y_train": np.arange(12) % 3,
        "x_test": pixels(6, 6, 5, 3),
        "y_test": np.arange(6) % 3,
    }
    arrays.update(changes)
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return arrays


def test_an_npz_file_gives_its_arrays_channels_first(tmp_path):
    path = tmp_path / "mine.npz"
    arrays = write_npz(path)
    for given in (path, str(path)):
        data = load_dataset(given)
        assert data.name == "mine" and data.n_classes == 3 and data.image_shape == (3, 6, 5)
        assert data.x_train.dtype == torch.uint8 and data.x_train.is_contiguous()
        assert np.array_equal(data.x_train.numpy(), arrays["x_train"].transpose(0, 3, 1, 2))
        assert np.array_equal(data.y_test.numpy(), arrays["y_test"])


@pytest.mark.parametrize(
    ("array", "shape"),
    [
        (pixels(12, 8, 8), (1, 8, 8)),
        (pixels(12, 3, 8, 8), (3, 8, 8)),
        (pixels(12, 8, 8, 1), (1, 8, 8)),
        (pixels(12, 7), (1, 1, 7)),
        (pixels(12, 8, 8) / 255, (1, 8, 8)),
        ((pixels(12, 8, 8) / 255).astype(np.float32), (1, 8, 8)),
        (pixels(12, 8, 8).astype(np.uint16), (1, 8, 8)),
        (pixels(12, 8, 8).astype(np.float64), (1, 8, 8)),
        (pixels(12, 8, 8) > 127, (1, 8, 8)),
    ],
)
def test_any_usual_layout_and_type_of_pixels_is_read(tmp_path, array, shape):
    write_npz(tmp_path / "a.npz", x_train=array, x_test=array[:6])
    data = load_dataset(tmp_path / "a.npz")
    assert data.image_shape == shape
    expected = array
    if array.dtype == bool or (array.dtype.kind == "f" and array.max() <= 1):
        expected = np.round(array.astype(float) * 255)
    assert np.array_equal(data.x_train.flatten().numpy(), expected.astype(np.uint8).ravel())


def test_a_fingerprint_names_the_content(tmp_path):
    arrays = write_npz(tmp_path / "a.npz")
    write_npz(tmp_path / "b.npz", **arrays)
    changed = arrays["x_train"].copy()
    changed[3, 2, 1, 0] ^= 1
    write_npz(tmp_path / "c.npz", **{**arrays, "x_train": changed})
    a, b, c = (load_dataset(tmp_path / f"{name}.npz").fingerprint for name in "abc")
    assert a == b != c


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x_test": None}, r"holds x_train, y_train, y_test but not x_test; write it with"),
        ({"y_train": np.arange(12)}, None),
        ({"y_test": np.arange(6)}, r"y_test='labels from 0 to 5': the training labels are 0 to 2"),
        ({"y_train": np.arange(12) + 1}, r"y_train=.*from 1 to 12.*0 to n - 1"),
        ({"y_train": np.arange(11) % 3}, r"y_train=\(11,\): there are 12 images"),
        ({"x_train": pixels(12, 6, 5, 2)}, r"x_train=\(12, 6, 5, 2\).*1, 3 or 4 channels"),
        ({"x_train": RNG.normal(size=(12, 6, 5, 3))}, r"not normalised"),
        ({"x_train": np.array([{}] * 12)}, r"not a readable .npz file of plain arrays"),
        ({"y_train": np.array(["cat", "dog", "emu"] * 4)}, r"y_train=.*give numbers"),
    ],
)
def test_an_npz_file_that_does_not_fit_says_what_to_do(tmp_path, changes, message):
    path = tmp_path / "mine.npz"
    write_npz(path, **changes)
    if message is None:
        assert load_dataset(path).n_classes == 12
        return
    with pytest.raises(BadArgument, match=message):
        load_dataset(path)


@pytest.mark.parametrize("damage", ["cut", "flipped", "text", "empty", "npy"])
def test_a_damaged_npz_file_says_so(tmp_path, damage):
    path = tmp_path / "mine.npz"
    write_npz(path)
    content = bytearray(path.read_bytes())
    if damage == "flipped":
        content[200] ^= 255
    if damage == "npy":
        with path.open("wb") as file:
            np.save(file, np.zeros(3))
    else:
        path.write_bytes(
            {
                "cut": content[: len(content) // 2],
                "flipped": content,
                "text": b"hello",
                "empty": b"",
            }[damage]
        )
    with pytest.raises(BadArgument, match=r"mine\.npz': not a readable \.npz .*numpy\.savez"):
        load_dataset(path)


# ---- names and paths that lead nowhere ----------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            "cifar1000",
            r"dataset='cifar1000': unknown dataset; did you mean 'cifar100'\? known: .*mnist",
        ),
        ("no/such/file.npz", r"dataset='no/such/file.npz': no such file; check the path"),
        ("no/such/folder", r"dataset='no/such/folder': does not exist; give an .npz file"),
        (__file__, r"is no .npz file and no folder"),
        (3, r"dataset='int': give a name, a path, or a map-style torch dataset"),
    ],
)
def test_what_is_no_dataset_is_refused_with_the_known_ones(given, message):
    with pytest.raises(BadArgument, match=message):
        load_dataset(given)


def test_names_are_listed_and_their_case_does_not_matter():
    assert {"digits", "mnist", "fashion-mnist", "cifar10", "cifar100"} <= set(DATASETS)
    assert all(DATASETS.about().values())
    assert load_dataset("Digits").name == "digits"
    data = load_dataset("digits")
    assert load_dataset(data) is data


# ---- MNIST and Fashion-MNIST: idx files ---------------------------------------------------------


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


# ---- CIFAR: pickled batches, with checksums -----------------------------------------------------


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


# ---- downloads ----------------------------------------------------------------------------------


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


# ---- image folders ------------------------------------------------------------------------------


def write_images(folder, classes, count, size=(7, 6), mode="RGB"):
    for name in classes:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            shape = (size[1], size[0]) + ((3,) if mode == "RGB" else ())
            Image.fromarray(pixels(*shape)).save(folder / name / f"{i:03}.png")


def test_an_image_folder_with_its_own_split(tmp_path):
    write_images(tmp_path / "train", ["cat", "dog"], 4)
    write_images(tmp_path / "test", ["cat", "dog"], 2)
    (tmp_path / "train" / "cat" / "notes.txt").write_text("no image")
    data = load_dataset(tmp_path)
    assert data.image_shape == (3, 6, 7) and (len(data.x_train), len(data.x_test)) == (8, 4)
    assert data.y_train.tolist() == [0] * 4 + [1] * 4
    third = np.asarray(Image.open(tmp_path / "train" / "cat" / "002.png"))
    assert np.array_equal(data.x_train[2].permute(1, 2, 0).numpy(), third)


def test_an_image_folder_without_a_split_sets_every_fifth_of_a_class_aside(tmp_path):
    write_images(tmp_path, ["a", "b", "c"], 10, mode="L")
    data = load_dataset(str(tmp_path))
    assert data.image_shape == (1, 6, 7)
    assert data.y_test.tolist() == [0, 0, 1, 1, 2, 2] and len(data.x_train) == 24
    fifth = np.asarray(Image.open(tmp_path / "a" / "004.png"))
    assert np.array_equal(data.x_test[0, 0].numpy(), fifth)


def test_grey_and_coloured_images_together_are_coloured(tmp_path):
    write_images(tmp_path / "train", ["a", "b"], 3, mode="L")
    write_images(tmp_path / "train", ["c"], 3)
    write_images(tmp_path / "val", ["a", "b", "c"], 1, mode="L")
    data = load_dataset(tmp_path)
    assert data.image_shape == (3, 6, 7)
    assert torch.equal(data.x_train[0, 0], data.x_train[0, 2])


def test_images_of_several_sizes_need_image_size(tmp_path):
    write_images(tmp_path, ["a"], 5)
    write_images(tmp_path, ["b"], 5, size=(20, 10))
    with pytest.raises(
        BadArgument, match=r"b/000.png': 20 x 10 pixels where .*7 x 6; give image_size"
    ):
        load_dataset(tmp_path)
    assert load_dataset(tmp_path, image_size=8).image_shape == (3, 8, 8)
    with pytest.raises(BadArgument, match="image_size=0"):
        load_dataset(tmp_path, image_size=0)


def test_an_image_folder_that_cannot_be_used_says_why(tmp_path):
    with pytest.raises(BadArgument, match=r"no class folders in it; lay images out as CLASS/"):
        load_dataset(tmp_path)
    (tmp_path / "a").mkdir()
    with pytest.raises(BadArgument, match=r"no images in its class folders; known endings"):
        load_dataset(tmp_path)
    write_images(tmp_path, ["a"], 2)
    with pytest.raises(BadArgument, match=r"no class has 5 samples"):
        load_dataset(tmp_path)
    (tmp_path / "a" / "001.png").write_bytes(b"\x89PNG nothing")
    with pytest.raises(BadArgument, match=r"a/001.png': not a readable image .*replace or remove"):
        load_dataset(tmp_path)


def test_a_test_class_that_was_never_trained_is_refused(tmp_path):
    write_images(tmp_path / "train", ["cat", "dog"], 2)
    write_images(tmp_path / "test", ["cow"], 2)
    with pytest.raises(BadArgument, match=r"test/cow': no such class among the training images"):
        load_dataset(tmp_path)


# ---- torch datasets -----------------------------------------------------------------------------


class Pictures(torch.utils.data.Dataset):
    def __init__(self, n=10, size=6, label=lambda i: i % 2, make=Image.fromarray):
        self.items = [(make(pixels(size, size, 3)), label(i)) for i in range(n)]

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        return self.items[i]


def test_a_torch_dataset_of_pictures_is_read_once_and_split():
    source = Pictures(20)
    data = load_dataset(source)
    assert data.name == "Pictures" and data.image_shape == (3, 6, 6)
    assert (len(data.x_train), len(data.x_test)) == (16, 4)
    assert np.array_equal(data.x_train[1].permute(1, 2, 0).numpy(), np.asarray(source[1][0]))


def test_a_pair_of_tensor_datasets_keeps_its_split():
    x = torch.randint(0, 256, (12, 3, 5, 5))
    train = TensorDataset(x[:8] / 255, torch.arange(8) % 4)
    test = TensorDataset(x[8:] / 255, torch.arange(4))
    data = load_dataset((train, test))
    assert torch.equal(data.x_train.long(), x[:8]) and torch.equal(data.x_test.long(), x[8:])
    assert data.y_test.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (Pictures(0), "it is empty"),
        (Pictures(5, label=lambda i: "cat"), r"item 0 is no \(image, label\) pair"),
        (TensorDataset(torch.zeros(5, 1, 2, 2)), r"item 0 is no \(image, label\) pair"),
        (TensorDataset(torch.randn(5, 1, 4, 4), torch.zeros(5)), r"item 0.*not normalised"),
        (Pictures(5, make=lambda image: "image.png"), r"item 0=.*give a PIL image, an array"),
        (
            Pictures(5).items + Pictures(5, size=7).items,
            r"item 5=\(3, 7, 7\): item 0 is \(3, 6, 6\)",
        ),
        (iter([]), "map-style torch dataset"),
    ],
)
def test_a_torch_dataset_that_cannot_be_used_says_why(source, message):
    with pytest.raises(BadArgument, match=message):
        load_dataset(source)


def test_data_can_be_made_of_arrays_directly():
    x = pixels(10, 6, 6, 3)
    x.setflags(write=False)
    data = ArrayData(x, np.arange(10) % 2, x, np.arange(10) % 2)
    assert data.image_shape == (3, 6, 6) and data.to("cpu") is data
    assert data.describe() == {
        "name": "arrays",
        "fingerprint": data.fingerprint,
        "n_train": 10,
        "n_test": 10,
        "n_classes": 2,
        "image_shape": [3, 6, 6],
    }


def test_streams_are_imported_without_the_slow_packages():
    import subprocess

    code = (
        "import sys, clmeta.streams; "
        "slow = ('avalanche', 'torchvision', 'pandas', 'matplotlib', 'sklearn', 'PIL'); "
        "print([name for name in slow if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
