"""Datasets from .npz files: layouts, types, content, and files that do not fit."""

import numpy as np
import pytest
import torch
from dataset_parts import RNG, pixels

from clmeta.errors import BadArgument
from clmeta.streams import load_dataset


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
