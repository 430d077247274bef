"""Y = f(X Wᵀ + b) in one kernel: bias and activation in the epilogue of the matrix product."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastmlp.kernels import configs
from fastmlp.kernels.activations import activate
from fastmlp.kernels.device import dot, load_slopes, pointers, store, tile_of
from fastmlp.kernels.launch import arch_of, cdiv, launch

#: The Triton name of each dtype that the kernels compute in.
TL_DTYPE = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}


@triton.jit(do_not_specialize=["M"])
def linear_act_kernel(
    x_ptr, stride_xm, stride_xk,  # X (M, K)
    w_ptr, stride_wn, stride_wk,  # W (N, K)
    b_ptr, stride_b,  # b (N,)
    slope_ptr, stride_slope, slope,
    y_ptr,  # Y (M, N), contiguous
    z_ptr,  # Z (M, N), contiguous; f's input
    M, N, K,
    ACT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    KEEP_Z: tl.constexpr,
    EVEN_K: tl.constexpr,  # BLOCK_K divides K: no mask along the reduction
    DTYPE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
):  # fmt: skip
    pid_m, pid_n = tile_of(tl.program_id(0), tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N), GROUP_M)
    rows = pid_m * BLOCK_M + tl.arange(0, BLOCK_M)
    cols = pid_n * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    x = pointers(x_ptr, rows, k, stride_xm, stride_xk)
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
        acc = dot(x_tile, w_tile, acc, DTYPE, PRECISION)
        x += BLOCK_K * stride_xk
        w += BLOCK_K * stride_wk

    if HAS_BIAS:
        acc += tl.load(b_ptr + cols * stride_b, mask=cols < N, other=0.0).to(tl.float32)[None, :]
    inside = row_ok & col_ok
    offsets = rows[:, None].to(tl.int64) * N + cols[None, :]
    if KEEP_Z:
        store(z_ptr + offsets, acc, inside)
    slopes = load_slopes(slope_ptr, slope, stride_slope, cols, N, ACT)
    store(y_ptr + offsets, activate(acc, slopes[None, :], ACT), inside)


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
) -> tuple[Tensor, Tensor | None]:
    """Y = f(X Wᵀ + b) in ``dtype``, and Z = X Wᵀ + b if ``keep_z``. One launch.

    x (M, K), weight (N, K), bias (N,), slope_weight (1,) or (N,); any strides; none of M, N, K is 0.
    """
    (m, k), n = x.shape, weight.shape[0]
    y = torch.empty((m, n), device=x.device, dtype=dtype)
    z = torch.empty_like(y) if keep_z else None
    tile = configs.lookup("linear", arch_of(x), configs.precision_class(dtype, precision), n, k)
    launch(
        linear_act_kernel,
        (cdiv(m, tile.BLOCK_M) * cdiv(n, tile.BLOCK_N),),
        x, x.stride(0), x.stride(1),
        weight, weight.stride(0), weight.stride(1),
        bias, 0 if bias is None else bias.stride(0),
        slope_weight, slope_stride(slope_weight), slope,
        y, z,
        m, n, k,
        ACT=act,
        HAS_BIAS=bias is not None,
        KEEP_Z=keep_z,
        EVEN_K=k % tile.BLOCK_K == 0,
        DTYPE=TL_DTYPE[dtype],
        PRECISION=precision,
        **tile.options(),
    )  # fmt: skip
    return y, z


def slope_stride(slope_weight: Tensor | None) -> int:
    """PReLU's slopes: one shared by all features (stride 0), or one each."""
    return 0 if slope_weight is None or slope_weight.numel() == 1 else slope_weight.stride(0)
