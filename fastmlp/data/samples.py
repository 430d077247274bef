"""Rows of numbers, and what is to be said of each, as two tensors on a device."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True, repr=False)
class Samples:
    """A data set of plain features: for regression, or with labels for classification.

    Raises:
        ValueError: features and targets that do not fit each other.
    """

    x: Tensor  # (N, features) floating
    y: Tensor  # (N, outputs) floating, or labels (N,) int64
    name: str

    def __post_init__(self) -> None:
        if not self.x.is_floating_point() or self.x.dim() != 2:
            raise ValueError(f"x: expected (N, features) floating, got {_kind(self.x)}")
        kinds = {2: self.y.is_floating_point(), 1: self.y.dtype == torch.int64}
        if not kinds.get(self.y.dim(), False) or len(self.y) != len(self.x):
            raise ValueError(
                f"y: expected ({len(self.x)}, outputs) floating, or labels ({len(self.x)},) torch.int64, "
                f"got {_kind(self.y)}"
            )

    def __repr__(self) -> str:
        return f"<Samples: {self.name}, x {_kind(self.x)}, y {_kind(self.y)}, on {self.x.device}>"

    def __len__(self) -> int:
        return len(self.x)

    @property
    def features(self) -> int:
        """Numbers of a row."""
        return self.x.shape[1]

    def to(self, device: torch.device | str) -> Samples:
        """The same set on ``device``."""
        return replace(self, x=self.x.to(device), y=self.y.to(device))

    def subset(self, count: int) -> Samples:
        """The first ``count`` examples."""
        return replace(self, x=self.x[:count], y=self.y[:count])


def _kind(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {tensor.dtype}"
