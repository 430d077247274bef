"""Y = f(X Wᵀ + b) in one kernel: bias, activation and dropout in the epilogue of the matrix product."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastmlp.kernels.common.activations import activate
from fastmlp.kernels.common.arguments import (
    Activation,
    Source,
    at,
    load_vector,
    matrix,
    rows_of,
    slopes_of,
    transposed,
    vector,
)
from fastmlp.kernels.common.device import dot, store, tile_of, wait_for_previous
from fastmlp.kernels.common.dropout import Dropout, arguments, drop
from fastmlp.kernels.common.quantized import dequantize, scalar
from fastmlp.kernels.launch import cdiv, launch
from fastmlp.kernels.tiles import configs


@triton.jit
def linear_tile(pid, x, w, bias, act, dropout, site, y, z, M, N, K, TILE: tl.constexpr):
    """One tile of Y (M, N) = f(X Wᵀ + b), and of Z, f's input; arguments as the kernel's."""
    pid_m, pid_n = tile_of(pid, tl.cdiv(M, TILE.BLOCK_M), tl.cdiv(N, TILE.BLOCK_N), TILE.GROUP_M)
    rows = pid_m * TILE.BLOCK_M + tl.arange(0, TILE.BLOCK_M)
    cols = pid_n * TILE.BLOCK_N + tl.arange(0, TILE.BLOCK_N)
    k = tl.arange(0, TILE.BLOCK_K)
    xs = at(x.matrix, rows_of(x, rows, rows < M), k)
    ws = at(transposed(w), k, cols)
    row_ok = rows[:, None] < M
    col_ok = cols[None, :] < N

    acc = tl.zeros((TILE.BLOCK_M, TILE.BLOCK_N), tl.float32)
    for start in range(0, K, TILE.BLOCK_K):
        if TILE.EVEN_K:
            x_tile = tl.load(xs, mask=row_ok, other=0.0)
            w_tile = tl.load(ws, mask=col_ok, other=0.0)
        else:
            x_tile = tl.load(xs, mask=row_ok & (k[None, :] < K - start), other=0.0)
            w_tile = tl.load(ws, mask=col_ok & (k[:, None] < K - start), other=0.0)
        if x.shift is not None:
            x_tile = dequantize(x_tile, x, start + k, K)
        acc = dot(x_tile, w_tile, acc, y.ptr.dtype.element_ty, TILE.PRECISION)
        xs += TILE.BLOCK_K * x.matrix.col
        ws += TILE.BLOCK_K * w.col

    if x.scale is not None and x.shift is None:  # one number, of exact integers
        acc *= scalar(x.scale.ptr)
    if bias is not None:
        acc += load_vector(bias, cols, N)[None, :]
    inside = row_ok & col_ok
    if z is not None:
        store(at(z, rows, cols), acc, inside)
    out = activate(acc, slopes_of(act, cols, N)[None, :], act.name)
    if dropout is not None:
        out = drop(out, dropout, site, rows, pid_n * TILE.BLOCK_N, TILE.BLOCK_N)
    store(at(y, rows, cols), out, inside)


@triton.jit(do_not_specialize=["M", "site"])
def linear_act_kernel(
    x,  # a Source: X (M, K)
    w,  # a Matrix: W (N, K)
    bias,  # a Vector: b (N,), or None
    act,  # an Activation
    dropout, site,  # a Drop, or None; see `fastmlp.kernels.common.dropout`
    y,  # a Matrix: Y (M, N), in the dtype of the product
    z,  # a Matrix: Z (M, N), f's input, or None
    M, N, K,
    PDL: tl.constexpr,
    TILE: tl.constexpr,  # Blocks
):  # fmt: skip
    wait_for_previous(PDL)
    linear_tile(tl.program_id(0), x, w, bias, act, dropout, site, y, z, M, N, K, TILE)


def linear_act(
    x: Source,
    weight: Tensor,
    bias: Tensor | None,
    act: Activation,
    keep_z: bool,
    dtype: torch.dtype,
    precision: str,
    *,
    dropout: Dropout | None = None,
    out: tuple[Tensor, Tensor | None] | None = None,
    pdl: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Y = f(X Wᵀ + b) in ``dtype``, and Z = X Wᵀ + b if ``keep_z``. One launch.

    x (M, K), weight (N, K), bias (N,), a PReLU's slopes (1,) or (N,); any strides; none of M, N, K is 0.
    With ``dropout`` Y is what it leaves. ``out`` is Y and Z (M, N) to write to.
    """
    n, k = weight.shape
    m = len(x.matrix.ptr if x.index is None else x.index)
    if out is None:
        y = torch.empty((m, n), device=weight.device, dtype=dtype)
        out = y, torch.empty_like(y) if keep_z else None
    y, z = out
    family = "linear" if x.shift is None else "linear_extra"
    tile = configs.for_weight(family, weight, dtype, precision)
    launch(
        linear_act_kernel,
        (cdiv(m, tile.BLOCK_M) * cdiv(n, tile.BLOCK_N),),
        x, matrix(weight), vector(bias), act, *arguments(dropout), matrix(y), matrix(z), m, n, k,
        PDL=pdl,
        TILE=tile.blocks(k, precision),
        **tile.options,
    )  # fmt: skip
    return out
