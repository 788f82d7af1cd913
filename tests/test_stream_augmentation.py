"""Augmentation: crops and flips change pixels and nothing else."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stream_parts import equal

from clmeta.streams import ArrayData, stationary


@given(st.integers(0, 2**40))
@settings(max_examples=15, deadline=None)
def test_augmentation_changes_pixels_and_nothing_else(seed):
    # Labels name the images here, so that the order can be read from them.
    x = torch.randint(1, 256, (30, 3, 8, 8), dtype=torch.uint8)
    data = ArrayData(x, torch.arange(30), x, torch.arange(30))
    plain = list(stationary(data, seed=seed, epochs=2))
    augmented = list(stationary(data, seed=seed, epochs=2, augment="crop-flip"))
    assert [int(y) for _, y, _, _ in plain] == [int(y) for _, y, _, _ in augmented]
    assert not equal(plain, augmented)
    assert equal(stationary(data, seed=seed, epochs=2, augment="crop-flip"), augmented)
    first, second = augmented[:30], augmented[30:]
    by_label = [
        sorted(((int(y), x) for x, y, _, _ in half), key=lambda p: p[0]) for half in (first, second)
    ]
    assert any(not torch.equal(a[1], b[1]) for a, b in zip(*by_label, strict=True))


def test_crop_flip_is_a_window_of_the_padded_image_mirrored_or_not():
    image = torch.arange(1, 65, dtype=torch.uint8).view(1, 1, 8, 8)
    data = ArrayData(image.repeat(2, 1, 1, 1), [0, 1], image, [0])
    padded = torch.zeros(16, 16)
    padded[4:12, 4:12] = image[0, 0].float() / 255
    windows = {
        (row, column, flip): window.flip(-1) if flip else window
        for row in range(9)
        for column in range(9)
        for flip in (0, 1)
        for window in [padded[row : row + 8, column : column + 8]]
    }
    seen = [
        key
        for x, _, _, _ in stationary(data, epochs=400, augment="crop-flip")
        for key, window in windows.items()
        if torch.equal(x[0, 0], window)
    ]
    rows, columns, flips = (set(values) for values in zip(*seen, strict=True))
    assert rows == columns == set(range(9)) and flips == {0, 1}
    assert len(seen) >= 800
