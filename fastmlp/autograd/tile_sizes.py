"""How large the tiles of logits are in which a linear cross-entropy is computed, so that few exist at a time.

A sweep over rows makes some rows' logits of every class, so that their loss and gradient are known at
once; it gives dX, each row complete in one product. dW sums over all rows. In float32 the sweep over rows
adds to it as it goes. A 16-bit dW would round at every addition, and a float32 buffer of its size is a
third of eager's memory at (8192, 4096, 128256), moved twice a tile: there a sweep over classes makes every
row's logits of some classes again, and each row of dW is complete in one product, which sums in float32.
See docs/linear_cross_entropy.md for the count.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

#: What eager holds at its peak: log-softmax, its gradient, and the logits' gradient.
_EAGER_MATRICES = 3
#: Less than this is no burden, and small problems are fastest in one tile.
_LEAST = 1 << 25
_ALIGNED = 64


class TileSizes(NamedTuple):
    """Of the two sweeps."""

    rows: int  # of a tile that has every class
    classes: int  # of a tile that has every row; 0: the sweep over rows gives dW too


def tile_sizes(
    x: Tensor,
    weight: Tensor,
    dtype: torch.dtype,
    loss_dtype: torch.dtype,
    *,
    scratch: float,
    need_params: bool,
    workspace: int | None,
) -> TileSizes:
    """The largest tiles that fit into ``workspace``.

    Args:
        x: (N, K).
        weight: (C, D, K).
        dtype: of the products.
        loss_dtype: in which eager computes the loss.
        scratch: bytes that the backend allocates for an element of a tile.
        need_params: whether there is a gradient of weight or bias.
        workspace: bytes besides the results; None for a tenth of what eager takes.
    """
    (n, k), (c, d, _) = x.shape, weight.shape
    copies = sum(
        t.numel() * dtype.itemsize for t in (x, weight) if t.dtype != dtype
    )  # eager's autocast has them
    if workspace is None:
        eager = _EAGER_MATRICES * n * c * d * loss_dtype.itemsize + copies
        workspace = max(eager // 10, _LEAST)
    fixed = copies + 8 * n * d * 4  # and statistics and losses
    free = max(workspace - fixed, workspace // 16)  # of few rows, the weights' copy is larger than all else
    element = dtype.itemsize + scratch
    rows = _part(n, free, c * d * element)
    accumulates = weight.dtype == dtype and dtype.itemsize >= 4
    if accumulates or rows == n or not need_params:
        return TileSizes(rows, 0)
    return TileSizes(rows, _part(c, free, d * (n * element + (weight.dtype != dtype) * k * dtype.itemsize)))


def _part(count: int, free: int, each: float) -> int:
    """How many of ``count`` to take at a time, each of so many bytes: nearly equal parts, aligned."""
    most = max(1, min(count, int(free / each)))
    part = -(-count // -(-count // most))
    aligned = -(-part // _ALIGNED) * _ALIGNED
    return min(aligned if aligned <= most else part, count)
