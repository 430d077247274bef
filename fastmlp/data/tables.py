"""The small sets that come with scikit-learn: no download, and a split that is the same everywhere."""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from fastmlp.data.errors import DataError
from fastmlp.data.images import Images
from fastmlp.data.samples import Samples

_TRAIN = 0.8  # of the examples


def digits(seed: int = 0) -> tuple[Images, Images]:
    """1797 handwritten digits of 8 x 8 pixels: 1437 to train on, 360 to test.

    Their 17 shades, 0 to 16, become the bytes 0 to 255. Source: ``sklearn.datasets.load_digits``.

    Args:
        seed: of the split: the first 80 % of ``torch.randperm(1797)`` are the training set.

    Raises:
        DataError: scikit-learn is missing.
    """
    found = _datasets().load_digits()
    images = torch.from_numpy(found.images).mul(255 / 16).round_().to(torch.uint8)
    labels = torch.from_numpy(found.target).to(torch.int64)
    classes = tuple(str(name) for name in found.target_names)
    train, test = _split(len(labels), seed)
    return (
        Images(images[train], labels[train], classes, "digits"),
        Images(images[test], labels[test], classes, "digits"),
    )


def diabetes(seed: int = 0) -> tuple[Samples, Samples]:
    """How diabetes went on in 442 patients after a year, from 10 numbers: 353 to train on, 89 to test.

    Every column of x (N, 10) and y (N, 1), float32, has mean 0 and standard deviation 1 over the training
    part; the test part is shifted and scaled by the same numbers. A squared error of 1 is thus what the mean
    alone gives. Source: ``sklearn.datasets.load_diabetes``.

    Args:
        seed: of the split, as `digits`.

    Raises:
        DataError: scikit-learn is missing.
    """
    found = _datasets().load_diabetes(scaled=False)
    x, y = torch.from_numpy(found.data), torch.from_numpy(found.target)[:, None]
    train, test = _split(len(x), seed)
    x, y = _standardized(x, train), _standardized(y, train)
    return Samples(x[train], y[train], "diabetes"), Samples(x[test], y[test], "diabetes")


def _split(count: int, seed: int) -> tuple[Tensor, Tensor]:
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed), device="cpu")
    first = int(_TRAIN * count)
    return order[:first], order[first:]


def _standardized(columns: Tensor, rows: Tensor) -> Tensor:
    """``columns`` less the mean of ``rows``, over their standard deviation: computed in float64."""
    part = columns[rows]
    return ((columns - part.mean(0)) / part.std(0, correction=0)).float()


def _datasets() -> ModuleType:
    try:
        from sklearn import datasets
    except ImportError as error:
        raise DataError(
            f"scikit-learn cannot be imported ({error}); install it with `pip install 'fastmlp[train]'`"
        ) from error
    return datasets
