"""What is taken for a dataset: names, paths and arrays."""

import numpy as np
import pytest
from dataset_parts import pixels

from clmeta.errors import BadArgument
from clmeta.streams import DATASETS, ArrayData, load_dataset


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
