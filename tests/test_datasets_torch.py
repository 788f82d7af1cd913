"""Datasets from torch datasets."""

import numpy as np
import pytest
import torch
from dataset_parts import pixels
from PIL import Image
from torch.utils.data import TensorDataset

from clmeta.errors import BadArgument
from clmeta.streams import load_dataset


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
