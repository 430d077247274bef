"""Numbers that are not finite: how many there are in data, and where."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor


def row(number: int) -> str:
    """How a row of data is called."""
    return f"row {number}"


def row_as(dtype: torch.dtype, data: tuple[Tensor, ...], number: int) -> str:
    """The same of ``data`` before they became ``dtype``: which is named where their numbers are finite."""
    return row(number) + (f" as {dtype}" if all(bool(t[number].isfinite().all()) for t in data) else "")


def has_others(data: Tensor, dtype: torch.dtype | None = None) -> bool:
    """Whether a NaN or an infinity is among ``data``, as ``dtype`` holds them. One pass, and one read."""
    if not data.is_floating_point() or data.numel() == 0:
        return False
    dtype = dtype or data.dtype
    # A sum is much faster than a look at each, and finite only if all are; of halves it may overflow.
    total = data.sum(dtype=dtype if dtype.itemsize >= 4 else torch.float32)
    return not math.isfinite(total) and not bool(data.to(dtype).isfinite().all())


def bad_rows(data: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """The rows of ``data`` (N, ...) that hold a NaN or an infinity: their numbers, (n,) int64."""
    good = data.to(dtype or data.dtype).isfinite()
    return (~good.flatten(1).all(1) if good.dim() > 1 else ~good).nonzero()[:, 0]


def message(
    name: str,
    what: str,
    data: Tensor,
    rows: Tensor,
    where: Callable[[int], str] = row,
    dtype: torch.dtype | None = None,
) -> str:
    """That those ``rows`` of ``data``, the ``what`` of the set ``name``, are its `bad_rows` as ``dtype``."""
    kind = "nan" if data[rows].isnan().any() else "inf"
    first = where(int(rows[0]))
    if dtype is not None and bool(data[rows].isfinite().all()):
        first += f" as {dtype}"
    return (
        f"{name}: expected finite {what}, got {kind} in {len(rows)} of {len(data)} rows, the first in {first}"
    )
