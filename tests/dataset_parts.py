"""Random pixels, of which the tests of datasets make their small files."""

import numpy as np

RNG = np.random.default_rng(0)


def pixels(*shape):
    return RNG.integers(0, 256, shape, dtype=np.uint8)
