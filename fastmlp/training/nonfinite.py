"""NaN and infinity in data: how many rows have them, and which is the first."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


def row(number: int) -> str:
    """What a row of data is called."""
    return f"row {number}"


class Origin(NamedTuple):
    """Where rows of data are from, and what becomes of them, for whoever checks them."""

    name: str  # of the data set or the file
    dtype: torch.dtype | None = None  # that floating numbers become later; None if they stay as they are
    where: Callable[[int], str] = row  # which row of the data a row is


def bad_rows(data: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """The rows of ``data`` (N, ...) with a NaN or an infinity once they are ``dtype``: (n,) int64.

    If there are none, that takes one pass and one read.
    """
    dtype = dtype or data.dtype
    if data.is_floating_point() and data.numel():
        # A sum is much faster than a look at each, and finite only if all are; of halves it may overflow.
        total = data.sum(dtype=dtype if dtype.itemsize >= 4 else torch.float32)
        if not math.isfinite(total):
            good = data.to(dtype).isfinite()
            return (~good.flatten(1).all(1) if good.dim() > 1 else ~good).nonzero()[:, 0]
    return torch.empty(0, dtype=torch.int64, device=data.device)


def message(origin: Origin, what: str, data: Tensor, rows: Tensor) -> str:
    """That ``rows`` are the `bad_rows` of ``data``: "features" or "targets", whatever ``what`` says."""
    kind = "nan" if data[rows].isnan().any() else "inf"
    first = origin.where(int(rows[0]))
    if origin.dtype is not None and bool(data[rows].isfinite().all()):
        first += f" as {origin.dtype}"
    return (
        f"{origin.name}: expected finite {what}, got {kind} in {len(rows)} of {len(data)} rows, "
        f"the first in {first}"
    )
