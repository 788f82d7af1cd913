"""Data whose images can be told apart, and comparisons of streams over them."""

import torch

from clmeta.streams import ArrayData

PLAIN = ["abrupt_classes", "permuted_inputs", "permuted_labels", "stationary"]


def numbered(n_train=60, n_test=20, n_classes=10, shape=(1, 4, 4), name="numbered"):
    """Images that can be told apart: the first pixels hold the image's number."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randint(0, 256, (n_train + n_test, *shape), dtype=torch.uint8, generator=generator)
    flat = x.view(len(x), -1)
    flat[:, 0] = torch.arange(len(x)) % 256
    flat[:, 1] = torch.arange(len(x)) // 256
    y = torch.arange(n_train + n_test) % n_classes
    train, test = x[:n_train].clone(), x[n_train:].clone()
    return ArrayData(train, y[:n_train].clone(), test, y[n_train:].clone(), name=name)


DATA = numbered()


def numbers(stream):
    """The number of each training image in the order shown; not for permuted pixels."""
    return [int(v) for x, _, _, _ in stream for v in (x[:, 0, 0, 0] * 255).round()]


def equal(a, b):
    a, b = list(a), list(b)
    return len(a) == len(b) and all(
        torch.equal(xa, xb) and torch.equal(ya, yb) and rest_a == rest_b
        for (xa, ya, *rest_a), (xb, yb, *rest_b) in zip(a, b, strict=True)
    )
