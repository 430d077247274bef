"""How far a result is from float64's, and how far it may be: tests and benchmarks judge by the same rule."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from fastmlp.costs.ceilings import tf32


def products(precision: str) -> AbstractContextManager[object]:
    """A context that multiplies float32 matrices in TF32, if ``precision`` says so."""
    return tf32() if precision == "tf32" else nullcontext()


def error(value: Tensor, exact: Tensor) -> float:
    """‖value - exact‖ / ‖exact‖ in float64, absolute where ``exact`` is 0.

    Infinite if ``value`` is not finite where ``exact`` is.

    Raises:
        AssertionError: the shapes differ, or NaN and inf are not where ``exact`` has them.
    """
    value, exact = value.detach().to(exact.device).double(), exact.detach().double()
    if value.shape != exact.shape:
        raise AssertionError(f"shape {tuple(value.shape)}, expected {tuple(exact.shape)}")
    odd = ~torch.isfinite(exact)
    if not torch.equal(value[odd].nan_to_num(7.0), exact[odd].nan_to_num(7.0)):
        raise AssertionError("non-finite elements differ")
    value, exact = value[~odd], exact[~odd]
    if value.numel() == 0:
        return 0.0
    if not torch.isfinite(value).all():
        return math.inf
    norm = exact.norm().item()
    return (value - exact).norm().item() / (norm if norm > 0 else 1.0)


def allowed(torchs: Tensor, exact: Tensor, roundings: int = 1, eps: float | None = None) -> float:
    """Twice torch's own error in the same dtype, plus ``roundings`` of that dtype.

    A chain rounds twice a layer, forward and backward. A rounding counts half an epsilon, and more for
    few elements, where sums may cancel and torch's error can be 0 by luck. ``eps`` is the operands', if
    they are coarser than the result's dtype.
    """
    eps = torch.finfo(torchs.dtype).eps if eps is None else eps
    rounding = eps * (0.5 + 8 / max(exact.numel(), 1) ** 0.5)
    return 2 * error(torchs, exact) + roundings * rounding


def judged(
    what: str, value: Tensor, torchs: Tensor, exact: Tensor, roundings: int = 1, eps: float | None = None
) -> dict[str, Any]:
    """A result's `error` and what is `allowed`, as a report has them."""
    return {"what": what, "error": error(value, exact), "allowed": allowed(torchs, exact, roundings, eps)}


def excess(judged: dict[str, Any]) -> float:
    """How many times what is allowed an error is: above 1 the result is wrong."""
    return float(judged["error"]) / max(float(judged["allowed"]), 1e-300)
