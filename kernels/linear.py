"""Y = f(X Wᵀ + b) in one kernel: bias, activation and dropout in the epilogue of the matrix product."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastmlp.kernels import configs, quantized
from fastmlp.kernels.activations import activate
from fastmlp.kernels.device import (
    dot,
    gathered,
    load_slopes,
    pointers,
    store,
    tile_of,
    wait_for_previous,
)
from fastmlp.kernels.dropout import Dropout, arguments, drop
from fastmlp.kernels.launch import arch_of, cdiv, launch
from fastmlp.kernels.quantized import Number, dequantize, scalar

#: The Triton name of each dtype that the kernels compute in.
TL_DTYPE = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}


@triton.jit
def linear_tile(
    pid,
    x_ptr, stride_xm, stride_xk, index_ptr, x_scale, stride_scale, x_shift, stride_shift,
    w_ptr, stride_wn, stride_wk,
    b_ptr, stride_b, slope_ptr, stride_slope, slope,
    seed_ptr, site, p, keep_scale,
    y_ptr, stride_ym, z_ptr,
    M, N, K,
    ACT: tl.constexpr, DROPOUT: tl.constexpr, HAS_BIAS: tl.constexpr, KEEP_Z: tl.constexpr,
    GATHER: tl.constexpr, DEQUANT: tl.constexpr, EVEN_K: tl.constexpr,
    DTYPE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
):  # fmt: skip
    """One tile of Y (M, N) = f(X Wᵀ + b); with GATHER row m of X is row index[m] of x."""
    pid_m, pid_n = tile_of(pid, tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N), GROUP_M)
    rows = pid_m * BLOCK_M + tl.arange(0, BLOCK_M)
    cols = pid_n * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    x = pointers(x_ptr, gathered(rows, rows < M, index_ptr, GATHER), k, stride_xm, stride_xk)
    w = pointers(w_ptr, k, cols, stride_wk, stride_wn)  # a tile of Wᵀ
    row_ok = rows[:, None] < M
    col_ok = cols[None, :] < N

    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, K, BLOCK_K):
        if EVEN_K:
            x_tile = tl.load(x, mask=row_ok, other=0.0)
            w_tile = tl.load(w, mask=col_ok, other=0.0)
        else:
            x_tile = tl.load(x, mask=row_ok & (k[None, :] < K - start), other=0.0)
            w_tile = tl.load(w, mask=col_ok & (k[:, None] < K - start), other=0.0)
        if DEQUANT == "affine":
            x_tile = dequantize(x_tile, x_scale, stride_scale, x_shift, stride_shift, start + k, K)
        acc = dot(x_tile, w_tile, acc, DTYPE, PRECISION)
        x += BLOCK_K * stride_xk
        w += BLOCK_K * stride_wk

    if DEQUANT == "scale":
        acc *= scalar(x_scale)
    if HAS_BIAS:
        acc += tl.load(b_ptr + cols * stride_b, mask=cols < N, other=0.0).to(tl.float32)[None, :]
    inside = row_ok & col_ok
    offsets = rows[:, None].to(tl.int64) * stride_ym + cols[None, :]
    if KEEP_Z:
        store(z_ptr + offsets, acc, inside)
    slopes = load_slopes(slope_ptr, slope, stride_slope, cols, N, ACT)
    y = activate(acc, slopes[None, :], ACT)
    if DROPOUT:
        y = drop(y, seed_ptr, site, p, keep_scale, rows, pid_n * BLOCK_N, BLOCK_N)
    store(y_ptr + offsets, y, inside)


@triton.jit(do_not_specialize=["M", "site"])
def linear_act_kernel(
    x_ptr, stride_xm, stride_xk,  # X (M, K)
    index_ptr,  # (M,): which rows of x are X, if GATHER
    x_scale, stride_scale, x_shift, stride_shift,  # see `fastmlp.kernels.quantized`
    w_ptr, stride_wn, stride_wk,  # W (N, K)
    b_ptr, stride_b,  # b (N,)
    slope_ptr, stride_slope, slope,
    seed_ptr, site, p, keep_scale,  # see `fastmlp.kernels.dropout`
    y_ptr, stride_ym,  # Y (M, N), rows contiguous
    z_ptr,  # Z (M, N), laid out as Y; f's input
    M, N, K,
    ACT: tl.constexpr,
    DROPOUT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    KEEP_Z: tl.constexpr,
    GATHER: tl.constexpr,
    DEQUANT: tl.constexpr,
    EVEN_K: tl.constexpr,  # BLOCK_K divides K: no mask along the reduction
    PDL: tl.constexpr,
    DTYPE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
):  # fmt: skip
    wait_for_previous(PDL)
    linear_tile(
        tl.program_id(0),
        x_ptr, stride_xm, stride_xk, index_ptr, x_scale, stride_scale, x_shift, stride_shift,
        w_ptr, stride_wn, stride_wk,
        b_ptr, stride_b, slope_ptr, stride_slope, slope, seed_ptr, site, p, keep_scale,
        y_ptr, stride_ym, z_ptr, M, N, K,
        ACT, DROPOUT, HAS_BIAS, KEEP_Z, GATHER, DEQUANT, EVEN_K, DTYPE, PRECISION,
        BLOCK_M, BLOCK_N, BLOCK_K, GROUP_M,
    )  # fmt: skip


def linear_act(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    act: str,
    slope: float,
    slope_weight: Tensor | None,
    keep_z: bool,
    dtype: torch.dtype,
    precision: str,
    *,
    dropout: Dropout | None = None,
    index: Tensor | None = None,
    x_scale: Number = 1.0,
    x_shift: Number | None = None,
    out: tuple[Tensor, Tensor | None] | None = None,
    pdl: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Y = f(X Wᵀ + b) in ``dtype``, and Z = X Wᵀ + b if ``keep_z``. One launch.

    x (M, K), weight (N, K), bias (N,), slope_weight (1,) or (N,); any strides; none of M, N, K is 0.
    X is x_scale * x[index] + x_shift: numbers, or tensors of one or K elements; index (M,). With
    ``dropout`` Y is what it leaves. ``out`` is Y and Z (M, N) to
    write to: rows contiguous, strides alike.
    """
    (rows, k), n = x.shape, weight.shape[0]
    m = rows if index is None else len(index)
    if out is None:
        y = torch.empty((m, n), device=x.device, dtype=dtype)
        out = y, torch.empty_like(y) if keep_z else None
    y, z = out
    dequant = quantized.dequant(x_scale, x_shift)
    family = "linear_extra" if dequant == "affine" else "linear"
    tile = configs.lookup(family, arch_of(x), configs.precision_class(dtype, precision), n, k)
    launch(
        linear_act_kernel,
        (cdiv(m, tile.BLOCK_M) * cdiv(n, tile.BLOCK_N),),
        x, x.stride(0), x.stride(1),
        index, *quantized.arguments(x_scale, x_shift),
        weight, weight.stride(0), weight.stride(1),
        bias, 0 if bias is None else bias.stride(0),
        slope_weight, slope_stride(slope_weight), slope,
        *arguments(dropout),
        y, y.stride(0), z,
        m, n, k,
        ACT=act,
        DROPOUT=dropout is not None,
        HAS_BIAS=bias is not None,
        KEEP_Z=keep_z,
        GATHER=index is not None,
        DEQUANT=dequant,
        EVEN_K=k % tile.BLOCK_K == 0,
        PDL=pdl,
        DTYPE=TL_DTYPE[dtype],
        PRECISION=precision,
        **tile.options(),
    )  # fmt: skip
    return out


def slope_stride(slope_weight: Tensor | None) -> int:
    """PReLU's slopes: one shared by all features (stride 0), or one each."""
    return 0 if slope_weight is None or slope_weight.numel() == 1 else slope_weight.stride(0)
