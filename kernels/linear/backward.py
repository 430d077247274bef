"""The backward of Y = f(X Wᵀ + b): dX, dW, db and PReLU's slope gradient in one launch.

dX = dZ W and dW = dZᵀ X do not depend on each other, so they share a grid: its first programs
compute tiles of dX, the others tiles of dW. Nothing is ever masked in a pass of its own:

- the *epilogue* of dX multiplies by the previous layer's f', so what is stored is that layer's dZ;
- where no such epilogue ran (the chain's last layer has an activation), dZ = dY * f' is formed
  in a *prologue* as dY is read.

A dropout is undone in the same two places, before f'; see `fastmlp.kernels.common.dropout`.

db is the row sum of the dZᵀ tiles that dW reads anyway. The reduction of dW runs over the batch;
split over several programs it goes through a workspace summed in a fixed order, so that runs are
bitwise repeatable.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastmlp.kernels.common.activations import activate, mask_gradient, undo
from fastmlp.kernels.common.arguments import (
    TL_DTYPE,
    Activation,
    Scale,
    Source,
    Undo,
    at,
    matrix,
    rows_of,
    slopes_of,
    transposed,
)
from fastmlp.kernels.common.device import cast, dot, load_scale, store, tile_of, wait_for_previous
from fastmlp.kernels.common.dropout import Dropout, arguments, draws, undrop, undropped
from fastmlp.kernels.common.quantized import dequantize_gradient
from fastmlp.kernels.launch import cdiv, launch, launch_if, num_sms
from fastmlp.kernels.tiles import configs

# The fewest rows of the batch that one program of dW reduces: below that the workspace costs more.
_ROWS_PER_SPLIT = 512


class ParameterGrads(NamedTuple):
    """Where the parameters' gradients go, and what they are multiplied by."""

    weight: Any  # (N, K) contiguous
    bias: Any  # (N,), or None
    slope: Any  # PReLU's, (N,) float32, or None
    workspace: Any  # a row for each split of the batch, float32: dW, db and the slopes' side by side
    scale: Scale | None


@triton.jit
def input_tile(pid, grad, w, after, site, before, before_site, scale, dx, M, N, K, TILE: tl.constexpr):
    """One tile of dX (M, K) = scale * dZ (M, N) W (N, K), reduced over N; arguments as the kernel's."""
    pid_m, pid_k = tile_of(pid, tl.cdiv(M, TILE.BLOCK_M), tl.cdiv(K, TILE.BLOCK_N), TILE.GROUP_M)
    rows = pid_m * TILE.BLOCK_M + tl.arange(0, TILE.BLOCK_M)
    cols = pid_k * TILE.BLOCK_N + tl.arange(0, TILE.BLOCK_N)
    n = tl.arange(0, TILE.BLOCK_K)
    row_ok = rows[:, None] < M
    col_ok = cols[None, :] < K
    grads = at(grad, rows, n)
    ws = at(w, n, cols)
    if after is not None:
        if after.saved is not None:
            saved = at(after.saved, rows, n)

    acc = tl.zeros((TILE.BLOCK_M, TILE.BLOCK_N), tl.float32)
    for start in range(0, N, TILE.BLOCK_K):
        d_ok = row_ok if TILE.EVEN_K else row_ok & (n[None, :] < N - start)
        w_ok = col_ok if TILE.EVEN_K else col_ok & (n[:, None] < N - start)
        d = tl.load(grads, mask=d_ok, other=0.0)
        w_tile = tl.load(ws, mask=w_ok, other=0.0)
        if after is not None:
            s = d
            if after.saved is not None:
                s = tl.load(saved, mask=d_ok, other=0.0)
                saved += TILE.BLOCK_K * after.saved.col
            if after.drop is not None:
                d = undrop(d, after.drop, site, rows, start, after.act.name, False, TILE.BLOCK_K)
                s = undropped(s, after.drop.keep, after.act.name)
            slopes = slopes_of(after.act, start + n, N)
            d = mask_gradient(d, s, slopes[None, :], dx.ptr.dtype.element_ty, after.act.name)
        acc = dot(d, w_tile, acc, dx.ptr.dtype.element_ty, TILE.PRECISION)
        grads += TILE.BLOCK_K * grad.col
        ws += TILE.BLOCK_K * w.row

    inside = row_ok & col_ok
    if before is not None:
        first_col = pid_k * TILE.BLOCK_N
        if before.drop is not None:
            acc = undrop(acc, before.drop, before_site, rows, first_col, before.act.name, False, TILE.BLOCK_N)
        if before.saved is not None:
            s = tl.load(at(before.saved, rows, cols), mask=inside, other=0.0)
            if before.drop is not None:
                s = undropped(s, before.drop.keep, before.act.name)
            acc = undo(acc, s.to(tl.float32), before.act.slope, before.act.name)
    store(at(dx, rows, cols), acc * scale, inside)


@triton.jit
def weight_gradient(
    rows, cols, first, last, sum_rows, grad, after, site, x, N, K, DTYPE: tl.constexpr, TILE: tl.constexpr
):
    """A tile of dZᵀ X over the examples from ``first`` to ``last``, with dZ's sums and the slopes' gradient.

    dZ is summed over the examples only if ``sum_rows``: one column of tiles does that for all. A quantized
    ``x`` (M, K) stands for its integers: see `dequantize_gradient`.
    """
    row_ok = rows[:, None] < N
    col_ok = cols[None, :] < K
    m = first + tl.arange(0, TILE.BLOCK_K)
    grads = at(transposed(grad), rows, m)
    xs = at(x.matrix, m, cols)
    if after is not None:
        slopes = slopes_of(after.act, rows, N)
        if after.saved is not None:
            saved = at(transposed(after.saved), rows, m)
    if x.act is not None:
        x_slopes = slopes_of(x.act, cols, K)

    acc = tl.zeros((TILE.BLOCK_M, TILE.BLOCK_N), tl.float32)
    bias = tl.zeros((TILE.BLOCK_M,), tl.float32)
    slope_grad = tl.zeros((TILE.BLOCK_M,), tl.float32)
    first_row = tl.min(rows, 0)
    for start in range(first, last, TILE.BLOCK_K):
        examples = start + tl.arange(0, TILE.BLOCK_K)
        m_ok = examples < last
        d = tl.load(grads, mask=row_ok & m_ok[None, :], other=0.0)
        if x.index is not None:
            xs = at(x.matrix, rows_of(x, examples, m_ok), cols)
        x_tile = tl.load(xs, mask=col_ok & m_ok[:, None], other=0.0)
        if after is not None:
            s = d
            if after.saved is not None:
                s = tl.load(saved, mask=row_ok & m_ok[None, :], other=0.0).to(tl.float32)
                saved += TILE.BLOCK_K * after.saved.row
            if after.drop is not None:
                d = undrop(d, after.drop, site, examples, first_row, after.act.name, True, TILE.BLOCK_M)
                s = undropped(s, after.drop.keep, after.act.name)
            if after.act.weight is not None:
                slope_grad += tl.sum(tl.where(s > 0, 0.0, d.to(tl.float32) * s), 1)
            d = mask_gradient(d, s, slopes[:, None], DTYPE, after.act.name)
        if x.act is not None:
            x_tile = cast(activate(x_tile.to(tl.float32), x_slopes[None, :], x.act.name), DTYPE)
        if sum_rows:
            bias += tl.sum(d.to(tl.float32), 1)
        acc = dot(d, x_tile, acc, DTYPE, TILE.PRECISION)
        grads += TILE.BLOCK_K * grad.row
        if x.index is None:
            xs += TILE.BLOCK_K * x.matrix.row
    return acc, bias, slope_grad


@triton.jit
def _part(N, K):
    """Elements of a split's part of the workspace, which starts at a multiple of 16 bytes."""
    return tl.cdiv(tl.cast(N, tl.int64) * K + 2 * N, 16) * 16


@triton.jit
def _weight_tile(
    pid, grad, after, site, x, out, num_splits, rows_per_split, M, N, K,
    DTYPE: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """One tile of dW (N, K) = dZᵀ (N, M) X (M, K), reduced over one split of the batch."""
    num_n, num_k = tl.cdiv(N, TILE.BLOCK_M), tl.cdiv(K, TILE.BLOCK_N)
    num_tiles = num_n * num_k
    split = pid // num_tiles
    pid_n, pid_k = tile_of(pid % num_tiles, num_n, num_k, TILE.GROUP_M)
    rows = pid_n * TILE.BLOCK_M + tl.arange(0, TILE.BLOCK_M)
    cols = pid_k * TILE.BLOCK_N + tl.arange(0, TILE.BLOCK_N)
    first = split * rows_per_split
    last = tl.minimum(first + rows_per_split, M)
    scale = load_scale(out.scale)
    acc, bias, slope_grad = weight_gradient(
        rows, cols, first, last, x.shift is not None or (out.bias is not None and pid_k == 0),
        grad, after, site, x, N, K, DTYPE, TILE,
    )  # fmt: skip
    acc, bias = dequantize_gradient(acc, bias, x, cols, K)

    offsets = rows[:, None].to(tl.int64) * K + cols[None, :]
    inside = (rows[:, None] < N) & (cols[None, :] < K)
    once = rows < tl.where(pid_k == 0, N, 0)
    if num_splits == 1:
        store(out.weight + offsets, acc * scale, inside)
        if out.bias is not None:
            store(out.bias + rows, bias * scale, once)
        if out.slope is not None:
            store(out.slope + rows, slope_grad * scale, once)
    else:
        workspace = out.workspace + split.to(tl.int64) * _part(N, K)
        store(workspace + offsets, acc, inside)
        tail = workspace + tl.cast(N, tl.int64) * K + rows
        store(tail, bias, once)
        store(tail + N, slope_grad, once)


@triton.jit(do_not_specialize=["site", "before_site", "num_splits", "rows_per_split", "M"])
def linear_backward_kernel(
    grad,  # a Matrix (M, N): dZ, or dY where there is something to undo after the layer
    x,  # a Source: X (M, K), or None without ``out``
    w,  # a Matrix: W (N, K)
    after, site,  # an Undo of this layer's activation and dropout, or None; the dropout's layer
    before, before_site,  # likewise of the layer before, whose dZ the input's gradient then is
    dx,  # a Matrix (M, K), or None
    dx_scale,  # a Scale of dX, or None
    out,  # ParameterGrads, or None
    num_splits, rows_per_split,
    M, N, K,
    PDL: tl.constexpr,
    DTYPE: tl.constexpr,  # of the products, and of dX
    TILE: tl.constexpr,  # Blocks
):  # fmt: skip
    wait_for_previous(PDL)
    pid = tl.program_id(0)
    input_tiles = 0
    if dx is not None:
        input_tiles = tl.cdiv(M, TILE.BLOCK_M) * tl.cdiv(K, TILE.BLOCK_N)
        if pid < input_tiles:
            scale = load_scale(dx_scale)
            input_tile(pid, grad, w, after, site, before, before_site, scale, dx, M, N, K, TILE)
    if out is not None:
        if pid >= input_tiles:
            _weight_tile(
                pid - input_tiles, grad, after, site, x, out, num_splits, rows_per_split, M, N, K, DTYPE, TILE
            )


@triton.jit(do_not_specialize=["num_splits"])
def sum_splits_kernel(out, num_splits, N, K, BLOCK: tl.constexpr):
    """Sum the workspace of ``out`` (ParameterGrads) over the splits, always first to last."""
    size = tl.cast(N, tl.int64) * K
    part = _part(N, K)
    first = tl.program_id(0).to(tl.int64) * BLOCK
    offsets = first + tl.arange(0, BLOCK)
    acc = tl.zeros((BLOCK,), tl.float32)
    for split in range(0, num_splits):
        acc += tl.load(out.workspace + split * part + offsets, mask=offsets < part, other=0.0)
    acc *= load_scale(out.scale)
    if first + BLOCK <= size:
        store(out.weight + offsets, acc)
    else:
        store(out.weight + offsets, acc, offsets < size)
        n = offsets - size
        if out.bias is not None:
            store(out.bias + n, acc, (n >= 0) & (n < N))
        if out.slope is not None:
            store(out.slope + n - N, acc, (n >= N) & (n < 2 * N))


#: An `Undo` and its dropout's layer, as two arguments of the kernel; None if nothing is to be undone.
Undone = tuple[Undo | None, int]
NOTHING: Undone = (None, 0)


def undone(act: Activation, saved: Tensor | None, dropout: Dropout | None = None) -> Undone:
    """What a gradient goes back through: ``dropout``, and f' computed from ``saved``."""
    if act.name == "none":
        saved = None
        if dropout is None:
            return NOTHING
    drop, site = arguments(dropout)
    return Undo(act, matrix(saved), drop), site


class Asked(NamedTuple):
    """Which gradients are asked for; the bias's if it has a dtype."""

    input: bool = True
    params: bool = True
    bias_dtype: torch.dtype | None = None


def linear_backward(
    grad: Tensor,
    x: Source,
    weight: Tensor,
    *,
    after: Undone = NOTHING,
    before: Undone = NOTHING,
    scale: Scale | None = None,
    scale_input: bool = False,
    asked: Asked,
    dtype: torch.dtype,
    precision: str,
    out: Tensor | None = None,
    pdl: bool = False,
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """dX (M, K), dW (N, K), db (N,) and the slopes' gradient (N,) from ``grad`` (M, N).

    One launch, and a second to sum the splits where the batch is long and the layer small.
    dX is in ``dtype``, dW in the weight's. Any strides; no size is 0. A quantized or gathered X has no
    gradient. ``after`` is undone as ``grad`` is read, ``before`` in dX; ``scale`` multiplies the parameters'
    gradients, and with ``scale_input`` dX. ``out`` (M, K) receives dX.
    """
    (m, n), k = grad.shape, weight.shape[1]
    family, (behind, _), (below, _) = "linear_backward", after, before
    if x.shift is not None or (below is not None and below.drop is not None and draws(below.act.name)):
        family += "_extra"
    elif behind is not None:
        family += "_prologue"
    tile = configs.for_weight(family, weight, dtype, precision)
    empty = partial(torch.empty, device=grad.device)
    dx = empty((m, k), dtype=dtype) if asked.input and out is None else out
    grads = None
    input_tiles = cdiv(m, tile.BLOCK_M) * cdiv(k, tile.BLOCK_N) if asked.input else 0
    weight_tiles = cdiv(n, tile.BLOCK_M) * cdiv(k, tile.BLOCK_N) if asked.params else 0
    splits, rows_per_split = 1, m
    if asked.params:
        splits, rows_per_split = split_batch(m, weight_tiles, tile.BLOCK_K, num_sms(grad.device.index or 0))
        learned = behind is not None and behind.act.weight is not None
        grads = ParameterGrads(
            empty((n, k), dtype=weight.dtype),
            None if asked.bias_dtype is None else empty(n, dtype=asked.bias_dtype),
            empty(n, dtype=torch.float32) if learned else None,
            # Always float32 and always there, so that the number of splits never changes the kernel.
            empty((splits if splits > 1 else 0, cdiv(n * k + 2 * n, 16) * 16), dtype=torch.float32),
            scale,
        )
    launch(
        linear_backward_kernel,
        (input_tiles + weight_tiles * splits,),
        matrix(grad), x if asked.params else None, matrix(weight), *after, *before,
        matrix(dx), scale if scale_input else None,
        grads, splits, rows_per_split,
        m, n, k,
        PDL=pdl,
        DTYPE=TL_DTYPE[dtype],
        TILE=tile.blocks(n, precision),
        **tile.options,
    )  # fmt: skip
    if grads is None:
        return dx, None, None, None
    blocks = cdiv(n * k + 2 * n, _SUM_BLOCK)
    launch_if(splits > 1, sum_splits_kernel, (blocks,), grads, splits, n, k, BLOCK=_SUM_BLOCK)
    return dx, grads.weight, grads.bias, grads.slope


_SUM_BLOCK = 1024


def split_batch(rows: int, tiles: int, block: int, sms: int) -> tuple[int, int]:
    """How many programs share the reduction over the batch, and how many rows each takes."""
    wanted = max(1, min(rows // _ROWS_PER_SPLIT, sms // tiles))
    rows_each = cdiv(cdiv(rows, wanted), block) * block
    return cdiv(rows, rows_each), rows_each
