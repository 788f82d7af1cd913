"""Datasets from folders of images."""

import numpy as np
import pytest
import torch
from dataset_parts import pixels
from PIL import Image

from clmeta.errors import BadArgument
from clmeta.streams import load_dataset


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
