"""The three matrix products of a linear layer's loss, into memory that is there.

They are torch's own, of whole tiles. What differs is a CPU in float32, where MKL is the faster the fewer
classes a product has: of (256, 512) x 32,000 classes on two Zen 4 cores, logits, dX and dW take 76, 54 and
57 ms at once, and 49, 48 and 43 ms in panels of 2,000 classes. In bfloat16 (oneDNN) panels gain nothing.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

_PANEL = 2000
_CAST = 8192  # classes whose weights' gradient is in memory in two dtypes at once


def logits(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
    """out (M, C) = x (M, K) weightᵀ + bias."""
    for panel in _panels(weight):
        if bias is None:
            torch.mm(x, weight[panel].t(), out=out[:, panel])
        else:
            torch.addmm(bias[panel], x, weight[panel].t(), out=out[:, panel])


def input_gradient(dlogits: Tensor, weight: Tensor, out: Tensor) -> None:
    """out (M, K) = dlogits (M, C) weight."""
    if out.dtype != dlogits.dtype:
        out.copy_(torch.mm(dlogits, weight))
        return
    for panel in _panels(weight):
        if panel.start == 0:
            torch.mm(dlogits[:, panel], weight[panel], out=out)
        else:
            out.addmm_(dlogits[:, panel], weight[panel])


def weight_gradient(dlogits: Tensor, x: Tensor, out: Tensor, accumulate: bool) -> None:
    """out (C, K) = dlogitsᵀ x, or added to it, which takes an ``out`` of the operands' dtype."""
    if out.dtype != dlogits.dtype:
        for panel in _slices(len(out), _CAST):
            out[panel].copy_(torch.mm(dlogits[:, panel].t(), x))
        return
    for panel in _panels(out):
        if accumulate:
            out[panel].addmm_(dlogits[:, panel].t(), x)
        else:
            torch.mm(dlogits[:, panel].t(), x, out=out[panel])


def _panels(weight: Tensor) -> Iterator[slice]:
    blocked = weight.is_cpu and weight.dtype == torch.float32
    return _slices(len(weight), _PANEL if blocked else len(weight))


def _slices(count: int, size: int) -> Iterator[slice]:
    return (slice(i, min(i + size, count)) for i in range(0, count, size))
