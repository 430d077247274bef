"""How every test judges a result: against float64, and against torch's own error."""

from __future__ import annotations

from torch import Tensor

from benchmarks.numerics import allowed, error

__all__ = ["assert_as_good_as_torch", "error"]


def assert_as_good_as_torch(
    ours: Tensor,
    torchs: Tensor,
    exact: Tensor,
    what: str = "",
    roundings: int = 1,
    eps: float | None = None,
) -> None:
    """Our error is at most `allowed`, and our dtype torch's."""
    assert ours.dtype == torchs.dtype, f"{what}: dtype {ours.dtype}, torch gives {torchs.dtype}"
    bound = allowed(torchs, exact, roundings, eps)
    mine = error(ours, exact)
    assert mine <= bound, f"{what}: error {mine:.3e}, allowed {bound:.3e}"
