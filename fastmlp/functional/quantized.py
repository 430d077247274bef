"""What a quantized input must look like."""

from __future__ import annotations

import torch
from torch import Tensor

from fastmlp.backends import readable
from fastmlp.backends.base import Quantized
from fastmlp.backends.route import debugging

#: What quantized values may be.
INTEGERS = (torch.uint8, torch.int8)
_INDICES = (torch.int64, torch.int32)


def stand_in(input: Quantized, weight: Tensor) -> Tensor:
    """A tensor of the shape of X, and otherwise like ``weight``, that takes no memory.

    Raises:
        ValueError, TypeError, RuntimeError, IndexError: as `fastmlp.functional.linear_act`.
    """
    values, scale, shift, index = input
    if values.dtype not in INTEGERS:
        raise TypeError(f"values: expected torch.uint8 or torch.int8, got {values.dtype}")
    if values.dim() == 0 or (index is not None and values.dim() != 2):
        expected = "(..., features)" if index is None else "(N, features) to take rows of"
        raise ValueError(f"values: expected {expected}, got {tuple(values.shape)}")
    features = values.shape[-1]
    for number, name in ((scale, "scale"), (shift, "shift")):
        if not isinstance(number, Tensor):
            continue
        if number.shape not in ((), (1,), (features,)):
            raise ValueError(f"{name}: expected a number or ({features},), got {tuple(number.shape)}")
        if not number.is_floating_point():
            raise TypeError(f"{name}: expected a floating dtype, got {number.dtype}")
    if index is not None:
        if index.dtype not in _INDICES:
            raise TypeError(f"index: expected torch.int64 or torch.int32, got {index.dtype}")
        if index.dim() != 1:
            raise ValueError(f"index: expected (M,), the rows of values to take, got {tuple(index.shape)}")
    for tensor, name in ((values, "values"), (scale, "scale"), (shift, "shift"), (index, "index")):
        if isinstance(tensor, Tensor) and tensor.device != weight.device:
            raise RuntimeError(f"{name}: expected on {weight.device} as the weight, got {tensor.device}")
    if index is not None and debugging():
        wrong = (index < 0) | (index >= len(values))
        if bool(wrong.any()):
            raise IndexError(f"index: {int(index[wrong][0])} is out of bounds for {len(values)} rows")
    rows = values.shape[:-1] if index is None else index.shape
    return weight.detach().new_empty(1).expand(*rows, features)


def like(input: Tensor | Quantized, weight: Tensor) -> Tensor:
    """The input, or where it is quantized what stands for it in the checks: see `stand_in`."""
    return input if isinstance(input, Tensor) else stand_in(input, weight)


def is_constant(input: Tensor | Quantized) -> bool:
    """Whether kernels can read it, and nobody wants the gradient of scale or shift, which none computes."""
    if isinstance(input, Tensor):
        return True
    return all(readable(t) and not t.requires_grad for t in input if isinstance(t, Tensor))
