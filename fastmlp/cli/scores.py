"""How good predictions are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Score(NamedTuple):
    """Of one class. A share of nothing counts as 0, as in scikit-learn."""

    name: str
    precision: float  # of those predicted so, the share that is
    recall: float  # of those that are, the share predicted so
    f1: float  # the harmonic mean of the two
    support: int  # how many there are


def confusion(labels: Tensor, predicted: Tensor, classes: int) -> Tensor:
    """How often each class (row) was predicted as each (column), (classes, classes) int64."""
    return torch.bincount(labels * classes + predicted, minlength=classes * classes).view(classes, classes)


def scores(counts: Tensor, names: Sequence[str]) -> list[Score]:
    """Each class', and their plain mean as the last one."""
    counts = counts.cpu().double()
    right, is_so, said_so = counts.diag(), counts.sum(1), counts.sum(0)
    precision, recall = right / said_so.clamp(min=1), right / is_so.clamp(min=1)
    f1 = 2 * right / (is_so + said_so).clamp(min=1)
    columns = [torch.cat([column, column.mean()[None]]).tolist() for column in (precision, recall, f1)]
    support = [*is_so.int().tolist(), int(is_so.sum())]
    return [Score(*row) for row in zip([*names, "mean"], *columns, support)]


def mean_squared_error(outputs: Tensor, targets: Tensor) -> float:
    """The mean of the squared differences, both (N, out)."""
    return (outputs.double() - targets.double()).square().mean().item()


def r2(outputs: Tensor, targets: Tensor) -> float:
    """The share of the targets' variance that is explained, the mean over the outputs; both (N, out).

    1 is perfect, 0 is as good as the mean. NaN where a target does not vary.
    """
    outputs, targets = outputs.double(), targets.double()
    left = (outputs - targets).square().sum(0)
    return (1 - left / (targets - targets.mean(0)).square().sum(0)).mean().item()
