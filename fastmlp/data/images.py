"""Images and labels as two tensors on a device."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True, repr=False)
class Images:
    """A labelled image set, whole on one device: a quarter of what float32 would take.

    Raises:
        ValueError: images, labels or class names that do not fit each other.
    """

    images: Tensor  # (N, 28, 28) uint8
    labels: Tensor  # (N,) int64
    classes: tuple[str, ...]
    name: str

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.dim() < 2:
            kind = f"{tuple(self.images.shape)} {self.images.dtype}"
            raise ValueError(f"images: expected (N, ...) torch.uint8, got {kind}")
        if self.labels.shape != (len(self.images),):
            raise ValueError(
                f"labels: expected ({len(self.images)},), one an image, got {tuple(self.labels.shape)}"
            )

    def __repr__(self) -> str:
        shape = " x ".join(map(str, self.images.shape))
        return f"<Images: {self.name}, {shape}, {len(self.classes)} classes, on {self.images.device}>"

    def __len__(self) -> int:
        return len(self.images)

    @property
    def features(self) -> int:
        """Pixels of an image."""
        return self.images[0].numel() if len(self) else self.images.shape[1:].numel()

    def to(self, device: torch.device | str) -> Images:
        """The same set on ``device``."""
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))

    def subset(self, count: int) -> Images:
        """The first ``count`` examples."""
        return replace(self, images=self.images[:count], labels=self.labels[:count])


def batches(
    x: Tensor, y: Tensor, size: int, order: Tensor | None = None, *, raw: bool = False
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of features and labels, on the device they are on; the last may be shorter.

    Args:
        x: (N, ...); uint8 pixels come out as float32 in [0, 1].
        y: (N,).
        size: examples a batch.
        order: (N,) indices on the device, such as a permutation; None for as they stand.
        raw: leave the pixels as they are.
    """
    for start in range(0, len(y), size):
        rows = slice(start, start + size) if order is None else order[start : start + size]
        batch = x[rows]
        yield (batch.float().div_(255) if x.dtype == torch.uint8 and not raw else batch), y[rows]
