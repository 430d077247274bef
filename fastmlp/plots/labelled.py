"""Labels and predictions: images with both, and which class is taken for which."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fastmlp.plots import style

_NUMBERED = 20  # classes up to which the counts are legible


@style.styled
def predictions(
    images: Tensor,
    labels: Tensor,
    predicted: Tensor,
    classes: Sequence[str],
    *,
    rows: int = 2,
    columns: int = 9,
    only_wrong: bool = False,
) -> style.Picture:
    """The first images: above each its true label, below it the prediction, bold and orange where wrong.

    Args:
        images: (N, H, W), or (N, F) with F a square number; uint8 or floating.
        labels: (N,) indices into ``classes``.
        predicted: (N,) likewise.
        classes: their names.
        rows: of the grid.
        columns: of the grid.
        only_wrong: leave out what is right.

    Raises:
        ValueError: shapes or indices that do not fit; nothing to show.
    """
    labels, predicted = _checked(labels, predicted, classes)
    images = _square(images.detach().cpu(), len(labels))
    if min(rows, columns) < 1:
        raise ValueError(f"rows, columns: expected at least 1 each, got {rows} and {columns}")
    wrong = predicted != labels
    total = int(wrong.sum())
    if only_wrong and not total:
        raise ValueError(f"only_wrong: none of the {len(labels):,} predictions is wrong")
    chosen = (wrong.nonzero()[:, 0] if only_wrong else wrong.new_ones(len(wrong)).nonzero()[:, 0])[
        : rows * columns
    ]
    columns = min(columns, len(chosen))
    rows = -(-len(chosen) // columns)
    figure = style.figure(max(5.0, 1.15 * columns), 1.5 * rows + 0.45)
    for place, i in enumerate(chosen.tolist()):
        axis = figure.add_subplot(rows, columns, place + 1)
        axis.imshow(images[i].numpy(), cmap="gray_r", interpolation="nearest")
        axis.set_xticks([])
        axis.set_yticks([])
        axis.spines[:].set_visible(False)
        axis.set_title(classes[int(labels[i])], fontsize=8, pad=3, color=style.INK)
        mistaken = bool(wrong[i])
        axis.set_xlabel(
            classes[int(predicted[i])],
            fontsize=8,
            labelpad=3,
            color=style.ORANGE if mistaken else style.BLUE,
            weight="bold" if mistaken else "normal",
        )
    figure.suptitle(
        "above: true label; below: prediction, bold orange where wrong "
        f"({total:,} of {len(labels):,} are: {100 * total / len(labels):.1f} %)",
        fontsize=9,
    )
    return figure


def _square(images: Tensor, count: int) -> Tensor:
    """(N, H, W) from (N, 1, H, W), (N, H, W) or (N, F)."""
    shape = tuple(images.shape)
    if images.dim() == 4 and shape[1] == 1:
        images = images[:, 0]
    side = math.isqrt(shape[-1])
    if images.dim() == 2 and side * side == shape[-1]:
        images = images.unflatten(1, (side, side))
    if images.dim() != 3 or len(images) != count:
        raise ValueError(
            f"images: expected ({count}, height, width), or ({count}, a square number), got {shape}"
        )
    return images


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
    labels, predicted = _checked(labels, predicted, classes)
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


def _checked(labels: Tensor, predicted: Tensor, classes: Sequence[str]) -> tuple[Tensor, Tensor]:
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
