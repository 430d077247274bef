"""Which class is taken for which."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastmlp.plots import style
from fastmlp.plots.labelled import check

_NUMBERED = 20  # classes up to which the counts are legible


@style.styled
def confusion(labels: Tensor, predicted: Tensor, classes: Sequence[str]) -> style.Picture:
    """The confusion matrix: counts as numbers, and as the colour the share of a row, which is a true class.

    Args:
        labels: (N,) indices into ``classes``.
        predicted: (N,) likewise.
        classes: their names.

    Raises:
        ValueError: shapes or indices that do not fit; no example.
    """
    labels, predicted = check(labels, predicted, classes)
    counts = matrix(labels, predicted, len(classes))
    shares = counts / counts.sum(1, keepdim=True).clamp(min=1)
    side = min(12.0, 3.0 + 0.42 * len(classes))
    figure = style.figure(side + 0.8, side)
    axis = figure.add_subplot()
    image = axis.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=1)
    ticks = range(len(classes))
    axis.set_xticks(ticks, classes, rotation=45, ha="right", rotation_mode="anchor")
    axis.set_yticks(ticks, classes)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    axis.set_xlabel("predicted")
    axis.set_ylabel("true")
    if len(classes) <= _NUMBERED:
        for true, row in enumerate(counts.tolist()):
            for guess, count in enumerate(row):
                ink = "white" if shares[true, guess] > 0.5 else (style.INK if count else style.GREY)
                axis.text(guess, true, str(count), ha="center", va="center", color=ink, fontsize=8)
    figure.colorbar(image, ax=axis, label="share of the true class", shrink=0.8)
    right = int(counts.diagonal().sum())
    axis.set_title(f"{right:,} of {len(labels):,} right: {100 * right / len(labels):.2f} %")
    return figure


def matrix(labels: Tensor, predicted: Tensor, classes: int) -> Tensor:
    """Counts (classes, classes) int64: a row for each true class, a column for each prediction."""
    return torch.bincount(labels * classes + predicted, minlength=classes**2).unflatten(0, (classes, classes))
