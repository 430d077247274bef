"""Which class is taken for which."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fastmlp.plots import style


@style.styled
def confusion(labels: Tensor, predicted: Tensor, classes: Sequence[str], *, title: str = "") -> style.Picture:
    """The confusion matrix: counts as numbers, the share of each row (a true class) as the colour.

    Args:
        labels: (N,) indices into ``classes``.
        predicted: (N,) likewise.
        classes: their names.
        title: in front of the accuracy.

    Raises:
        ValueError: shapes or indices that do not fit; no example.
    """
    raise NotImplementedError
