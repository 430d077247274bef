"""What the tests here ask of a result: torch's own bits, or an error as small as torch's."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from tests.numerics import assert_as_good_as_torch


def same(a: Tensor, b: Tensor) -> bool:
    """Whether the numbers are equal, NaN in the same places."""
    return a.shape == b.shape and bool(((a == b) | (a.isnan() & b.isnan())).all())


def same_or_as_good(
    ours: Iterable[Tensor],
    torchs: Iterable[Tensor],
    exact: Iterable[Tensor],
    backend: str,
    what: str,
    roundings: int = 6,
    eps: float | None = None,
) -> None:
    """The very bits where torch's own ops run (backend "torch", float64); else judged against float64.

    "auto" has ways of its own on a CPU, in float64 too. ``eps`` is autocast's, of a result that is wider.
    """
    for i, (a, b, c) in enumerate(zip(list(ours), list(torchs), list(exact), strict=True)):
        name = f"{what}, tensor {i}"
        assert a.dtype == b.dtype, f"{name}: {a.dtype}, torch gives {b.dtype}"
        if backend == "torch" or (a.dtype == torch.float64 and backend != "auto"):
            assert same(a, b), name
        else:
            assert_as_good_as_torch(a, b, c, name, roundings, eps)
