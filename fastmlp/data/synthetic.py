"""The embedded default: image classes drawn from a seed, in the shapes of Fashion-MNIST."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from fastmlp.data.images import Images

_STYLES = 12  # a class is not one blob but a dozen, so that it is no half-space
_NOISE = 1.2


def synthetic(seed: int = 0, train: int = 60_000, test: int = 10_000) -> tuple[Images, Images]:
    """Train and test sets of 28 x 28 images in 10 classes; the same for the same seed on every machine.

    Each class has a dozen smooth prototypes. An image is one of them, plus smooth noise of about its
    own strength.

    Args:
        seed: of the prototypes and of everything drawn from them.
        train: examples of the first set.
        test: examples of the second.
    """
    generator = torch.Generator().manual_seed(seed)
    prototypes = _smooth(torch.randn(10 * _STYLES, 1, 7, 7, generator=generator))

    def draw(count: int) -> Images:
        labels = torch.randperm(count, generator=generator) % 10
        style = torch.randint(_STYLES, (count,), generator=generator)
        images = torch.empty(count, 28, 28, dtype=torch.uint8)
        for rows in torch.arange(count).split(5000):
            noise = _smooth(torch.randn(len(rows), 1, 7, 7, generator=generator))
            shade = prototypes[labels[rows] * _STYLES + style[rows]] + _NOISE * noise
            images[rows] = (shade * 48 + 96).clamp_(0, 255).to(torch.uint8)[:, 0]
        return Images(images, labels, tuple(f"class {c}" for c in range(10)), f"synthetic (seed {seed})")

    return draw(train), draw(test)


def _smooth(coarse: Tensor) -> Tensor:
    """A 7 x 7 field as 28 x 28."""
    return F.interpolate(coarse, (28, 28), mode="bicubic")
