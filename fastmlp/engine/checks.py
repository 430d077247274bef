"""What a batch must look like, said before anything is written."""

from __future__ import annotations

import torch
from torch import Tensor

from fastmlp.backends.base import SquaredError
from fastmlp.engine.network import Network
from fastmlp.functional.quantized import INTEGERS

_HALVES = (torch.bfloat16, torch.float16)


def check_batch(network: Network, x: Tensor, y: Tensor, rows: Tensor | None, dtype: torch.dtype) -> Tensor:
    """x as rows of features (N, K), for products in ``dtype``.

    Raises:
        ValueError: shapes that do not fit.
        TypeError: dtypes that do not.
        RuntimeError: another device than the parameters'.
    """
    features, device = network.widths[0], network.layers[0].weight.device
    if network.flatten and x.dim() > 2:
        x = x.flatten(1)
    if x.dim() != 2 or x.shape[1] != features:
        raise ValueError(f"x: expected (N, {features}), got {tuple(x.shape)}")
    regression = isinstance(network.options, SquaredError)
    targets = (len(x), network.widths[-1]) if regression else (len(x),)
    if y.shape != targets:
        what = "a number for each output" if regression else "a class index"
        raise ValueError(f"y: expected {targets}, {what} for each row of x, got {tuple(y.shape)}")
    # As torch: only under autocast may the features be of another dtype than the parameters.
    own = network.layers[0].weight.dtype
    if network.scale is not None:
        if x.dtype not in (*INTEGERS, own):
            raise TypeError(f"x: expected torch.uint8 or torch.int8 to dequantize, got {x.dtype}")
    elif x.dtype not in (torch.uint8, own) and not (x.dtype in _HALVES and dtype in _HALVES):
        raise TypeError(f"x: expected torch.uint8 or {own} as the parameters, got {x.dtype}")
    if y.dtype != (own if regression else torch.int64):
        raise TypeError(f"y: expected {own if regression else torch.int64}, got {y.dtype}")
    if rows is not None and (rows.dim() != 1 or rows.dtype != torch.int64):
        raise ValueError(f"rows: expected (B,) torch.int64, got {tuple(rows.shape)} {rows.dtype}")
    for tensor, name in ((x, "x"), (y, "y"), (rows, "rows")):
        if tensor is not None and tensor.device != device:
            raise RuntimeError(f"{name}: expected on {device} as the parameters, got {tensor.device}")
    return x
