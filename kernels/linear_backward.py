"""The backward of Y = f(X Wᵀ + b): dX, dW, db and PReLU's slope gradient in one launch.

dX = dZ W and dW = dZᵀ X do not depend on each other, so they share a grid: its first programs
compute tiles of dX, the others tiles of dW. Nothing is ever masked in a pass of its own:

- the *epilogue* of dX multiplies by the previous layer's f', so what is stored is that layer's dZ;
- where no such epilogue ran (the chain's last layer has an activation), dZ = dY * f' is formed
  in a *prologue* as dY is read.

A dropout is undone in the same two places, before f'; see `fastmlp.kernels.dropout`.

db is the row sum of the dZᵀ tiles that dW reads anyway. The reduction of dW runs over the batch;
split over several programs it goes through a workspace summed in a fixed order, so that runs are
bitwise repeatable.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastmlp.kernels import configs, quantized
from fastmlp.kernels.activations import activate, undo
from fastmlp.kernels.device import (
    cast,
    dot,
    gathered,
    load_scale,
    load_slopes,
    mask_gradient,
    pointers,
    store,
    tile_of,
    wait_for_previous,
)
from fastmlp.kernels.dropout import Dropout, arguments, draws, undrop, undropped
from fastmlp.kernels.launch import arch_of, cdiv, launch, launch_if, num_sms
from fastmlp.kernels.linear import TL_DTYPE, slope_stride
from fastmlp.kernels.quantized import Number, dequantize_gradient

# Rows of the batch that one program of dW reduces, at least: below that the workspace costs more.
_ROWS_PER_SPLIT = 512


@triton.jit
def input_tile(
    pid,
    grad_ptr, stride_gm, stride_gn, saved_ptr, stride_sm, stride_sn,
    w_ptr, stride_wn, stride_wk, slope_ptr, stride_slope, slope, seed_ptr, site, p, keep_scale,
    previous_ptr, stride_pm, stride_pk, previous_slope,
    previous_seed_ptr, previous_site, previous_p, previous_keep_scale,
    scale, dx_ptr, stride_dm, M, N, K,
    ACT: tl.constexpr, DROPOUT: tl.constexpr, PREVIOUS_ACT: tl.constexpr, PREVIOUS_DROPOUT: tl.constexpr,
    EVEN_N: tl.constexpr,
    DTYPE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
):  # fmt: skip
    """One tile of dX (M, K) = dZ (M, N) W (N, K), reduced over N."""
    pid_m, pid_k = tile_of(pid, tl.cdiv(M, BLOCK_M), tl.cdiv(K, BLOCK_N), GROUP_M)
    rows = pid_m * BLOCK_M + tl.arange(0, BLOCK_M)
    cols = pid_k * BLOCK_N + tl.arange(0, BLOCK_N)
    n = tl.arange(0, BLOCK_K)
    row_ok = rows[:, None] < M
    col_ok = cols[None, :] < K
    grad = pointers(grad_ptr, rows, n, stride_gm, stride_gn)
    saved = pointers(saved_ptr, rows, n, stride_sm, stride_sn) if ACT != "none" else grad
    w = pointers(w_ptr, n, cols, stride_wn, stride_wk)

    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, N, BLOCK_K):
        d_ok = row_ok if EVEN_N else row_ok & (n[None, :] < N - start)
        w_ok = col_ok if EVEN_N else col_ok & (n[:, None] < N - start)
        d = tl.load(grad, mask=d_ok, other=0.0)
        w_tile = tl.load(w, mask=w_ok, other=0.0)
        if ACT != "none" or DROPOUT:
            s = tl.load(saved, mask=d_ok, other=0.0) if ACT != "none" else d
            if DROPOUT:
                d = undrop(d, seed_ptr, site, p, keep_scale, rows, start, ACT, False, BLOCK_K)
                s = undropped(s, keep_scale, ACT)
            slopes = load_slopes(slope_ptr, slope, stride_slope, start + n, N, ACT)
            d = mask_gradient(d, s, slopes[None, :], DTYPE, ACT)
            saved += BLOCK_K * stride_sn
        acc = dot(d, w_tile, acc, DTYPE, PRECISION)
        grad += BLOCK_K * stride_gn
        w += BLOCK_K * stride_wn

    inside = row_ok & col_ok
    if PREVIOUS_ACT != "none" or PREVIOUS_DROPOUT:
        if PREVIOUS_DROPOUT:
            acc = undrop(
                acc, previous_seed_ptr, previous_site, previous_p, previous_keep_scale,
                rows, pid_k * BLOCK_N, PREVIOUS_ACT, False, BLOCK_N,
            )  # fmt: skip
        if PREVIOUS_ACT != "none":
            s = tl.load(pointers(previous_ptr, rows, cols, stride_pm, stride_pk), mask=inside, other=0.0)
            if PREVIOUS_DROPOUT:
                s = undropped(s, previous_keep_scale, PREVIOUS_ACT)
            acc = undo(acc, s.to(tl.float32), previous_slope, PREVIOUS_ACT)
    store(dx_ptr + rows[:, None].to(tl.int64) * stride_dm + cols[None, :], acc * scale, inside)


@triton.jit
def weight_gradient(
    rows, cols, first, last, sum_rows,
    grad_ptr, stride_gm, stride_gn, saved_ptr, stride_sm, stride_sn, seed_ptr, site, p, keep_scale,
    x_ptr, stride_xm, stride_xk, index_ptr, slopes, x_slopes, N, K,
    ACT: tl.constexpr, DROPOUT: tl.constexpr, X_ACT: tl.constexpr, GATHER: tl.constexpr,
    DTYPE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """A tile of dZᵀ X over the examples from ``first`` to ``last``, with dZ's sums and the slopes'.

    dZ is summed over the examples only if ``sum_rows``: one column of tiles does that for all. X is X_ACT
    of what is loaded: the layer before may have kept its Z alone.
    """
    row_ok = rows[:, None] < N
    col_ok = cols[None, :] < K
    m = first + tl.arange(0, BLOCK_K)
    grad = pointers(grad_ptr, rows, m, stride_gn, stride_gm)
    saved = pointers(saved_ptr, rows, m, stride_sn, stride_sm) if ACT != "none" else grad
    x = pointers(x_ptr, m, cols, stride_xm, stride_xk)

    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    bias = tl.zeros((BLOCK_M,), tl.float32)
    slope_grad = tl.zeros((BLOCK_M,), tl.float32)
    first_row = tl.min(rows, 0) if DROPOUT else 0
    for start in range(first, last, BLOCK_K):
        examples = start + tl.arange(0, BLOCK_K)
        m_ok = examples < last
        d = tl.load(grad, mask=row_ok & m_ok[None, :], other=0.0)
        if GATHER:
            x = pointers(x_ptr, gathered(examples, m_ok, index_ptr, GATHER), cols, stride_xm, stride_xk)
        x_tile = tl.load(x, mask=col_ok & m_ok[:, None], other=0.0)
        if ACT != "none" or DROPOUT:
            s = d
            if ACT != "none":
                s = tl.load(saved, mask=row_ok & m_ok[None, :], other=0.0).to(tl.float32)
            if DROPOUT:
                d = undrop(d, seed_ptr, site, p, keep_scale, examples, first_row, ACT, True, BLOCK_M)
                s = undropped(s, keep_scale, ACT)
            if ACT == "prelu":
                slope_grad += tl.sum(tl.where(s > 0, 0.0, d.to(tl.float32) * s), 1)
            d = mask_gradient(d, s, slopes[:, None], DTYPE, ACT)
            saved += BLOCK_K * stride_sm
        if X_ACT != "none":
            x_tile = cast(activate(x_tile.to(tl.float32), x_slopes[None, :], X_ACT), DTYPE)
        if sum_rows:
            bias += tl.sum(d.to(tl.float32), 1)
        acc = dot(d, x_tile, acc, DTYPE, PRECISION)
        grad += BLOCK_K * stride_gm
        if not GATHER:
            x += BLOCK_K * stride_xm
    return acc, bias, slope_grad


@triton.jit
def _weight_tile(
    pid,
    grad_ptr, stride_gm, stride_gn, saved_ptr, stride_sm, stride_sn,
    seed_ptr, site, p, keep_scale,
    x_ptr, stride_xm, stride_xk, index_ptr, x_scale, stride_scale, x_shift, stride_shift,
    slope_ptr, stride_slope, slope,
    scale, dw_ptr, db_ptr, dslope_ptr, workspace_ptr, num_splits, rows_per_split, M, N, K,
    ACT: tl.constexpr, DROPOUT: tl.constexpr, HAS_BIAS: tl.constexpr, GATHER: tl.constexpr,
    DEQUANT: tl.constexpr, DTYPE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
):  # fmt: skip
    """One tile of dW (N, K) = dZᵀ (N, M) X (M, K), reduced over one split of the batch."""
    num_tiles = tl.cdiv(N, BLOCK_M) * tl.cdiv(K, BLOCK_N)
    split = pid // num_tiles
    pid_n, pid_k = tile_of(pid % num_tiles, tl.cdiv(N, BLOCK_M), tl.cdiv(K, BLOCK_N), GROUP_M)
    rows = pid_n * BLOCK_M + tl.arange(0, BLOCK_M)
    cols = pid_k * BLOCK_N + tl.arange(0, BLOCK_N)
    first = split * rows_per_split
    last = tl.minimum(first + rows_per_split, M)
    slopes = load_slopes(slope_ptr, slope, stride_slope, rows, N, ACT)
    acc, bias, slope_grad = weight_gradient(
        rows, cols, first, last, DEQUANT == "affine" or (HAS_BIAS and pid_k == 0),
        grad_ptr, stride_gm, stride_gn, saved_ptr, stride_sm, stride_sn, seed_ptr, site, p, keep_scale,
        x_ptr, stride_xm, stride_xk, index_ptr, slopes, slopes, N, K,
        ACT, DROPOUT, "none", GATHER, DTYPE, PRECISION, BLOCK_M, BLOCK_N, BLOCK_K,
    )  # fmt: skip
    acc, bias = dequantize_gradient(acc, bias, x_scale, stride_scale, x_shift, stride_shift, cols, K, DEQUANT)

    offsets = rows[:, None].to(tl.int64) * K + cols[None, :]
    inside = (rows[:, None] < N) & (cols[None, :] < K)
    once = rows < tl.where(pid_k == 0, N, 0)
    if num_splits == 1:
        store(dw_ptr + offsets, acc * scale, inside)
        if HAS_BIAS:
            store(db_ptr + rows, bias * scale, once)
        if ACT == "prelu":
            store(dslope_ptr + rows, slope_grad * scale, once)
    else:  # the workspace's row: dW, db, dslope
        workspace = workspace_ptr + split.to(tl.int64) * (tl.cast(N, tl.int64) * K + 2 * N)
        store(workspace + offsets, acc, inside)
        tail = workspace + tl.cast(N, tl.int64) * K + rows
        store(tail, bias, once)
        store(tail + N, slope_grad, once)


@triton.jit(do_not_specialize=["M", "num_splits", "rows_per_split", "site", "previous_site"])
def linear_backward_kernel(
    grad_ptr, stride_gm, stride_gn,  # dZ, or dY where ACT is to be undone (M, N)
    saved_ptr, stride_sm, stride_sn,  # what ACT's derivative is computed from (M, N)
    x_ptr, stride_xm, stride_xk,  # X (M, K)
    index_ptr,  # (M,): which rows of x are X, if GATHER
    x_scale, stride_scale, x_shift, stride_shift,  # see `fastmlp.kernels.quantized`
    w_ptr, stride_wn, stride_wk,  # W (N, K)
    slope_ptr, stride_slope, slope,
    seed_ptr, site, p, keep_scale,  # see `fastmlp.kernels.dropout`
    previous_ptr, stride_pm, stride_pk, previous_slope,  # the same of the layer before (M, K)
    previous_seed_ptr, previous_site, previous_p, previous_keep_scale,
    scale_ptr, denominator_ptr,  # scalars: every parameter's gradient is times scale / denominator
    dx_ptr, stride_dm,  # (M, K), rows contiguous
    dw_ptr, db_ptr, dslope_ptr,  # (N, K), (N,), (N,)
    workspace_ptr, num_splits, rows_per_split,
    M, N, K,
    ACT: tl.constexpr,
    DROPOUT: tl.constexpr,
    PREVIOUS_ACT: tl.constexpr,
    PREVIOUS_DROPOUT: tl.constexpr,
    NEED_INPUT: tl.constexpr,
    NEED_PARAMS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    SCALE_INPUT: tl.constexpr,
    SCALE_PARAMS: tl.constexpr,
    GATHER: tl.constexpr,
    DEQUANT: tl.constexpr,
    EVEN_N: tl.constexpr,
    PDL: tl.constexpr,
    DTYPE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
):  # fmt: skip
    wait_for_previous(PDL)
    pid = tl.program_id(0)
    input_tiles = tl.cdiv(M, BLOCK_M) * tl.cdiv(K, BLOCK_N) if NEED_INPUT else 0
    if NEED_INPUT:
        if pid < input_tiles:
            input_tile(
                pid,
                grad_ptr, stride_gm, stride_gn, saved_ptr, stride_sm, stride_sn,
                w_ptr, stride_wn, stride_wk, slope_ptr, stride_slope, slope, seed_ptr, site, p, keep_scale,
                previous_ptr, stride_pm, stride_pk, previous_slope,
                previous_seed_ptr, previous_site, previous_p, previous_keep_scale,
                load_scale(scale_ptr, denominator_ptr, SCALE_INPUT), dx_ptr, stride_dm, M, N, K,
                ACT, DROPOUT, PREVIOUS_ACT, PREVIOUS_DROPOUT, EVEN_N,
                DTYPE, PRECISION, BLOCK_M, BLOCK_N, BLOCK_K, GROUP_M,
            )  # fmt: skip
    if NEED_PARAMS:
        if pid >= input_tiles:
            _weight_tile(
                pid - input_tiles,
                grad_ptr, stride_gm, stride_gn, saved_ptr, stride_sm, stride_sn,
                seed_ptr, site, p, keep_scale,
                x_ptr, stride_xm, stride_xk, index_ptr, x_scale, stride_scale, x_shift, stride_shift,
                slope_ptr, stride_slope, slope,
                load_scale(scale_ptr, denominator_ptr, SCALE_PARAMS), dw_ptr, db_ptr, dslope_ptr,
                workspace_ptr, num_splits, rows_per_split, M, N, K,
                ACT, DROPOUT, HAS_BIAS, GATHER, DEQUANT, DTYPE, PRECISION, BLOCK_M, BLOCK_N, BLOCK_K, GROUP_M,
            )  # fmt: skip


@triton.jit(do_not_specialize=["num_splits"])
def sum_splits_kernel(
    workspace_ptr, num_splits,
    dw_ptr, db_ptr, dslope_ptr, scale_ptr, denominator_ptr,
    N, K,
    HAS_BIAS: tl.constexpr,
    HAS_SLOPE: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Sum the workspace over the splits, first to last: the order never varies."""
    size = tl.cast(N, tl.int64) * K
    row = size + 2 * N
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    acc = tl.zeros((BLOCK,), tl.float32)
    for split in range(0, num_splits):
        acc += tl.load(workspace_ptr + split * row + offsets, mask=offsets < row, other=0.0)
    acc *= load_scale(scale_ptr, denominator_ptr, HAS_SCALE)
    store(dw_ptr + offsets, acc, offsets < size)
    n = offsets - size
    if HAS_BIAS:
        store(db_ptr + n, acc, (n >= 0) & (n < N))
    if HAS_SLOPE:
        store(dslope_ptr + n - N, acc, (n >= N) & (n < 2 * N))


def linear_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    *,
    act: str,
    saved: Tensor | None,
    slope: float,
    slope_weight: Tensor | None,
    previous_act: str,
    previous_saved: Tensor | None,
    previous_slope: float,
    scale: tuple[Tensor, Tensor] | None,
    scale_input: bool,
    need_input: bool,
    need_params: bool,
    bias_dtype: torch.dtype | None,
    dtype: torch.dtype,
    precision: str,
    dropout: Dropout | None = None,
    previous_dropout: Dropout | None = None,
    index: Tensor | None = None,
    x_scale: Number = 1.0,
    x_shift: Number | None = None,
    out: Tensor | None = None,
    pdl: bool = False,
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """dX (M, K), dW (N, K), db (N,) and the slopes' gradient (N,) from ``grad`` (M, N).

    One launch, and a second to sum the splits where the batch is long and the layer small.
    dX is in ``dtype``, dW in the weight's; db is None where ``bias_dtype`` is. Any strides; no
    size is 0. index, x_scale and x_shift as in `linear_act`; X then has no gradient. ``scale`` is
    (numerator, denominator), two scalars on the device. ``out`` (M, K), rows contiguous, receives dX.
    """
    (m, n), k = grad.shape, x.shape[1]
    family = "linear_backward"
    dequant = quantized.dequant(x_scale, x_shift)
    if dequant == "affine" or (previous_dropout is not None and draws(previous_act)):
        family += "_extra"
    elif act != "none" or dropout is not None:
        family += "_prologue"
    tile = configs.lookup(family, arch_of(x), configs.precision_class(dtype, precision), n, k)
    learned = act == "prelu"
    dx = torch.empty((m, k), device=x.device, dtype=dtype) if need_input and out is None else out
    dw = db = dslope = workspace = None
    input_tiles = cdiv(m, tile.BLOCK_M) * cdiv(k, tile.BLOCK_N) if need_input else 0
    weight_tiles = cdiv(n, tile.BLOCK_M) * cdiv(k, tile.BLOCK_N) if need_params else 0
    splits, rows_per_split = 1, m
    if need_params:
        dw = torch.empty((n, k), device=x.device, dtype=weight.dtype)
        if bias_dtype is not None:
            db = torch.empty(n, device=x.device, dtype=bias_dtype)
        if learned:
            dslope = torch.empty(n, device=x.device, dtype=torch.float32)
        splits, rows_per_split = split_batch(m, weight_tiles, tile.BLOCK_K, num_sms(x.device.index or 0))
        # Always float32 and always there, so that the number of splits never changes the kernel.
        workspace = torch.empty(
            (splits if splits > 1 else 0, n * k + 2 * n), device=x.device, dtype=torch.float32
        )
    scalars = scale or (None, None)
    launch(
        linear_backward_kernel,
        (input_tiles + weight_tiles * splits,),
        grad, grad.stride(0), grad.stride(1),
        *_matrix(saved),
        x, x.stride(0), x.stride(1), index, *quantized.arguments(x_scale, x_shift),
        weight, weight.stride(0), weight.stride(1),
        slope_weight, slope_stride(slope_weight), slope, *arguments(dropout),
        *_matrix(previous_saved), previous_slope, *arguments(previous_dropout),
        *scalars,
        dx, 0 if dx is None else dx.stride(0),
        dw, db, dslope,
        workspace, splits, rows_per_split,
        m, n, k,
        ACT=act,
        DROPOUT=dropout is not None,
        PREVIOUS_ACT=previous_act,
        PREVIOUS_DROPOUT=previous_dropout is not None,
        NEED_INPUT=need_input,
        NEED_PARAMS=need_params,
        HAS_BIAS=db is not None,
        SCALE_INPUT=scale is not None and scale_input,
        SCALE_PARAMS=scale is not None,
        GATHER=index is not None,
        DEQUANT=dequant,
        EVEN_N=n % tile.BLOCK_K == 0,
        PDL=pdl,
        DTYPE=TL_DTYPE[dtype],
        PRECISION=precision,
        **tile.options(),
    )  # fmt: skip
    if need_params:
        launch_if(
            splits > 1,
            sum_splits_kernel,
            (cdiv(n * k + 2 * n, _SUM_BLOCK),),
            workspace, splits, dw, db, dslope, *scalars, n, k,
            HAS_BIAS=db is not None,
            HAS_SLOPE=learned,
            HAS_SCALE=scale is not None,
            BLOCK=_SUM_BLOCK,
        )  # fmt: skip
    return dx, dw, db, dslope


_SUM_BLOCK = 1024


def _matrix(tensor: Tensor | None) -> tuple[Tensor | None, int, int]:
    """A matrix and its strides as kernel arguments; one that is not there has none."""
    return (None, 0, 0) if tensor is None else (tensor, tensor.stride(0), tensor.stride(1))


def split_batch(rows: int, tiles: int, block: int, sms: int) -> tuple[int, int]:
    """How many programs share the reduction over the batch, and how many rows each takes."""
    wanted = max(1, min(rows // _ROWS_PER_SPLIT, sms // tiles))
    rows_each = cdiv(cdiv(rows, wanted), block) * block
    return cdiv(rows, rows_each), rows_each
