"""Images with what they are and what a net takes them for."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fastmlp.plots import style


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
    """The first images, above each its label and below that the prediction, in another colour where it is wrong.

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
    raise NotImplementedError
