"""What pictures of labels and predictions have in common."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def check(labels: Tensor, predicted: Tensor, classes: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Both (N,) on the CPU as int64.

    Raises:
        ValueError: they are no indices of ``classes``, or not one each, or none at all.
    """
    for name, tensor in (("labels", labels), ("predicted", predicted)):
        if tensor.dim() != 1 or tensor.is_floating_point() or not len(tensor):
            kind = f"{tuple(tensor.shape)} {tensor.dtype}"
            raise ValueError(f"{name}: expected (N,) class indices, at least one, got {kind}")
        low, high = int(tensor.min()), int(tensor.max())
        if low < 0 or high >= len(classes):
            raise ValueError(f"{name}: expected indices from 0 to {len(classes) - 1}, got {low} to {high}")
    if labels.shape != predicted.shape:
        raise ValueError(
            f"predicted: expected {tuple(labels.shape)}, one a label, got {tuple(predicted.shape)}"
        )
    return labels.detach().cpu().to(torch.int64), predicted.detach().cpu().to(torch.int64)
