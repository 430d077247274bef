"""Images with what they are and what a net takes them for."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from fastmlp.plots import style
from fastmlp.plots.labelled import check


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
    labels, predicted = check(labels, predicted, classes)
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
