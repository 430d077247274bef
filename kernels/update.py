"""Every dW and db of a network and the optimizer's update in one launch.

A program computes one tile of one layer's dW = dZᵀ X and applies it: the gradients never reach memory.
Weights stay float32; where products run in 16 bits a copy in that dtype is written beside.

The head leaves its sums a program each; what the mean is divided by is known here first, added up in a
fixed order by every program. Over a long batch several programs share a tile: each leaves its part in
a workspace, and the last to arrive adds the parts up, first to last, so that runs are bitwise repeatable.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastmlp.kernels import network, quantized
from fastmlp.kernels.arguments import TL_DTYPE, Blocks, Matrix, Source, Vector
from fastmlp.kernels.configs import Tile
from fastmlp.kernels.device import store, tile_of, wait_for_previous
from fastmlp.kernels.launch import launch, next_power_of_2, num_sms
from fastmlp.kernels.linear_backward import split_batch, weight_gradient
from fastmlp.kernels.network import (
    B_FIRST,
    B_GROUP,
    B_SECOND,
    COLUMNS,
    COPY,
    DZ,
    FIRST_TILE,
    STRIDE_DZ,
    STRIDE_X,
    W_FIRST,
    W_GROUP,
    W_SECOND,
    B,
    W,
    X,
    load_features,
    load_pointer,
    load_stride,
)
from fastmlp.kernels.optimizers import HYPERS, apply
from fastmlp.kernels.quantized import Number, dequantize_gradient
from fastmlp.kernels.softmax import mean_loss


@triton.jit
def locate(
    table_ptr, num_layers, tile, ALIGNED: tl.constexpr,
    LAYERS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GROUP_M: tl.constexpr,
):  # fmt: skip
    """Which layer tile number ``tile`` is of: its number, its row, N, K, and the tile's rows and columns."""
    i = tl.arange(0, LAYERS)
    starts = tl.load(table_ptr + i * COLUMNS + FIRST_TILE, mask=i < num_layers, other=1 << 62)
    layer = tl.sum((starts <= tile).to(tl.int32), 0) - 1
    row = table_ptr + layer * COLUMNS
    n, k = load_features(row, ALIGNED)
    inside = tile - tl.load(row + FIRST_TILE).to(tl.int32)
    pid_n, pid_k = tile_of(inside, tl.cdiv(n, BLOCK_M), tl.cdiv(k, BLOCK_N), GROUP_M)
    return layer, row, n, k, pid_n * BLOCK_M + tl.arange(0, BLOCK_M), pid_k * BLOCK_N + tl.arange(0, BLOCK_N)


@triton.jit
def load_weights(row, rows, cols, n, k, RULE: tl.constexpr):
    """A tile of a layer's weight and of its two states (where RULE has none, the weight stands for it)."""
    offsets = rows[:, None].to(tl.int64) * k + cols[None, :]
    ok = (rows[:, None] < n) & (cols[None, :] < k)
    w = tl.load(load_pointer(row, W, tl.float32) + offsets, mask=ok, other=0.0)
    first = w
    second = w
    if RULE != "sgd":
        first = tl.load(load_pointer(row, W_FIRST, tl.float32) + offsets, mask=ok, other=0.0)
    if RULE == "adam":
        second = tl.load(load_pointer(row, W_SECOND, tl.float32) + offsets, mask=ok, other=0.0)
    return w, first, second


@triton.jit
def store_weights(row, rows, cols, n, k, w, first, second, RULE: tl.constexpr):
    offsets = rows[:, None].to(tl.int64) * k + cols[None, :]
    ok = (rows[:, None] < n) & (cols[None, :] < k)
    tl.store(load_pointer(row, W, tl.float32) + offsets, w, mask=ok)
    if RULE != "sgd":
        tl.store(load_pointer(row, W_FIRST, tl.float32) + offsets, first, mask=ok)
    if RULE == "adam":
        tl.store(load_pointer(row, W_SECOND, tl.float32) + offsets, second, mask=ok)


@triton.jit
def update_bias(row, rows, ok, g, hyper_ptr, RULE: tl.constexpr):
    """Apply a bias' gradient where ``ok``."""
    hyper = hyper_ptr + tl.load(row + B_GROUP) * HYPERS
    pointer = tl.load(row + B).to(tl.pointer_type(tl.float32)) + rows
    b = tl.load(pointer, mask=ok, other=0.0)
    first = b
    second = b
    if RULE != "sgd":
        first_ptr = tl.load(row + B_FIRST).to(tl.pointer_type(tl.float32)) + rows
        first = tl.load(first_ptr, mask=ok, other=0.0)
    if RULE == "adam":
        second_ptr = tl.load(row + B_SECOND).to(tl.pointer_type(tl.float32)) + rows
        second = tl.load(second_ptr, mask=ok, other=0.0)
    b, first, second = apply(b, g, first, second, hyper, RULE)
    tl.store(pointer, b, mask=ok)
    if RULE != "sgd":
        tl.store(first_ptr, first, mask=ok)
    if RULE == "adam":
        tl.store(second_ptr, second, mask=ok)


@triton.jit
def sum_partials(partial_ptr, count):
    """The programs' sums added up, always in the same order."""
    total = tl.zeros((128,), tl.float32)
    for start in range(0, count, 128):
        i = start + tl.arange(0, 128)
        total += tl.load(partial_ptr + i, mask=i < count, other=0.0)
    return tl.sum(total, 0)


@triton.jit
def gradient_scale(partial_ptr, num_partials, MEAN: tl.constexpr):
    """What the head's gradients are multiplied by; 0 where no row counts."""
    if MEAN:
        weight = sum_partials(partial_ptr + num_partials, num_partials)
        return tl.where(weight == 0, 0.0, 1.0 / weight)
    else:
        return 1.0


@triton.jit
def finish_step(partial_ptr, num_partials, loss_ptr, sums_ptr, M, MEAN: tl.constexpr):
    """The step's loss, and the epoch's sums of loss * rows and of right answers. For one program to do."""
    loss = sum_partials(partial_ptr, num_partials)
    if MEAN:
        loss = mean_loss(loss, sum_partials(partial_ptr + num_partials, num_partials))
    tl.store(loss_ptr, loss)
    right = sum_partials(partial_ptr + 2 * num_partials, num_partials)
    tl.store(sums_ptr, tl.load(sums_ptr) + loss.to(tl.float64) * M)
    tl.store(sums_ptr + 1, tl.load(sums_ptr + 1) + right.to(tl.float64))


@triton.jit
def tile_gradient(
    layer, row, n, k, rows, cols, begin, end,
    x_ptr, stride_xm, stride_xk, index_ptr, x_scale, stride_scale, x_shift, stride_shift,
    GATHER: tl.constexpr, DEQUANT: tl.constexpr, DTYPE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """A tile of dZᵀ X over the examples from ``begin`` to ``end``, and dZ's sums (of the first column)."""
    dz_ptr = load_pointer(row, DZ, DTYPE)
    stride_dz = load_stride(row, STRIDE_DZ)
    first_column = tl.min(cols, 0) == 0
    if layer == 0:
        acc, bias, _ = weight_gradient(
            rows, cols, begin, end, DEQUANT == "affine" or first_column,
            Matrix(dz_ptr, stride_dz, 1), None, 0,
            Source(Matrix(x_ptr, stride_xm, stride_xk), index_ptr if GATHER else None), n, k, DTYPE,
            Blocks(BLOCK_M, BLOCK_N, BLOCK_K, 1, False, PRECISION),
        )  # fmt: skip
        acc, bias = dequantize_gradient(
            acc, bias,
            Source(
                Matrix(x_ptr, stride_xm, stride_xk), None,
                Vector(x_scale, stride_scale) if DEQUANT != "none" else None,
                Vector(x_shift, stride_shift) if DEQUANT == "affine" else None,
            ), cols, k,
        )  # fmt: skip
    else:
        acc, bias, _ = weight_gradient(
            rows, cols, begin, end, first_column, Matrix(dz_ptr, stride_dz, 1), None, 0,
            Source(Matrix(load_pointer(row, X, DTYPE), load_stride(row, STRIDE_X), 1)), n, k, DTYPE,
            Blocks(BLOCK_M, BLOCK_N, BLOCK_K, 1, False, PRECISION),
        )  # fmt: skip
    return acc, bias


@triton.jit
def apply_tile(
    row, n, k, rows, cols, w, first, second, g, bias_g, hyper_ptr,
    RULE: tl.constexpr, HAS_COPY: tl.constexpr, KEEP: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """Update a tile and, in the first column of tiles, the bias. With KEEP the new tile is not stored.

    The copy that the next forward reads is stored always; for float32 that is the weight.
    """
    w, first, second = apply(w, g, first, second, hyper_ptr + tl.load(row + W_GROUP) * HYPERS, RULE)
    ok = (rows[:, None] < n) & (cols[None, :] < k)
    offsets = rows[:, None].to(tl.int64) * k + cols[None, :]
    if not KEEP:
        store_weights(row, rows, cols, n, k, w, first, second, RULE)
    if HAS_COPY:
        store(load_pointer(row, COPY, DTYPE) + offsets, w, ok)
    elif KEEP:
        tl.store(load_pointer(row, W, tl.float32) + offsets, w, mask=ok)
    has_bias = (tl.min(cols, 0) == 0) & (tl.load(row + B) != 0)
    update_bias(row, rows, (rows < n) & has_bias, bias_g, hyper_ptr, RULE)
    return w, first, second


@triton.jit(do_not_specialize=["num_layers", "num_partials", "splits", "rows_per_split", "M"])
def update_kernel(
    table_ptr, num_layers,
    x_ptr, stride_xm, stride_xk,  # the first layer's input (M, K)
    index_ptr,  # (M,): which rows of x it is, if GATHER
    x_scale, stride_scale, x_shift, stride_shift,  # see `fastmlp.kernels.quantized`
    hyper_ptr,  # (groups, HYPERS)
    partial_ptr, num_partials,  # (3, num_partials)
    loss_ptr, sums_ptr,  # float32; (2,) float64
    workspace_ptr, counter_ptr, splits, rows_per_split,
    M,
    GATHER: tl.constexpr,
    DEQUANT: tl.constexpr,
    MEAN: tl.constexpr,
    RULE: tl.constexpr,
    HAS_COPY: tl.constexpr,
    ALIGNED: tl.constexpr,
    PDL: tl.constexpr,
    LAYERS: tl.constexpr,
    DTYPE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
):  # fmt: skip
    wait_for_previous(PDL)
    tile = tl.program_id(0) // splits
    split = tl.program_id(0) % splits
    layer, row, n, k, rows, cols = locate(
        table_ptr, num_layers, tile, ALIGNED, LAYERS, BLOCK_M, BLOCK_N, GROUP_M
    )
    begin = split * rows_per_split
    g, bias_g = tile_gradient(
        layer, row, n, k, rows, cols, begin, tl.minimum(begin + rows_per_split, M),
        x_ptr, stride_xm, stride_xk, index_ptr, x_scale, stride_scale, x_shift, stride_shift,
        GATHER, DEQUANT, DTYPE, PRECISION, BLOCK_M, BLOCK_N, BLOCK_K,
    )  # fmt: skip
    arrived = 0
    if splits > 1:
        SIZE: tl.constexpr = BLOCK_M * BLOCK_N + BLOCK_M
        in_tile = tl.arange(0, BLOCK_M)[:, None] * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
        in_bias = BLOCK_M * BLOCK_N + tl.arange(0, BLOCK_M)
        parts = workspace_ptr + tile.to(tl.int64) * splits * SIZE
        tl.store(parts + split * SIZE + in_tile, g)
        tl.store(parts + split * SIZE + in_bias, bias_g)
        tl.debug_barrier()  # all threads' stores come before the arrival
        arrived = tl.atomic_add(counter_ptr + tile, 1, sem="acq_rel") - (splits - 1)
        if arrived == 0:  # the last one: every part is there
            g = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
            bias_g = tl.zeros((BLOCK_M,), tl.float32)
            for i in range(0, splits):
                g += tl.load(parts + i * SIZE + in_tile)
                bias_g += tl.load(parts + i * SIZE + in_bias)
            tl.store(counter_ptr + tile, 0)  # as the next launch wants it
    if arrived == 0:
        scale = gradient_scale(partial_ptr, num_partials, MEAN)
        w, first, second = load_weights(row, rows, cols, n, k, RULE)
        apply_tile(
            row, n, k, rows, cols, w, first, second, g * scale, bias_g * scale, hyper_ptr,
            RULE, HAS_COPY, False, DTYPE,
        )  # fmt: skip
    if tl.program_id(0) == 0:
        finish_step(partial_ptr, num_partials, loss_ptr, sums_ptr, M, MEAN)


@dataclass
class Accumulators:
    """What an update writes besides the weights."""

    loss: Tensor  # () float32
    sums: Tensor  # (2,) float64
    counters: Tensor  # (tiles,) int32, zero between launches


def update(
    net: network.Table,
    x: Tensor,
    index: Tensor | None,
    x_scale: Number,
    partial: Tensor,
    num_partials: int,
    hypers: Tensor,
    into: Accumulators,
    *,
    rule: str,
    mean: bool,
    tile: Tile,
    dtype: torch.dtype,
    precision: str,
    x_shift: Number | None = None,
    pdl: bool = False,
) -> None:
    """All gradients of ``net``'s parameters, and the step of ``rule`` with them. One launch.

    x (M, K) of the first layer, or the data set that ``index`` (M,) takes rows of; x_scale and x_shift as in
    `linear_act`; partial
    (3, num_partials) from `head`; hypers (groups, HYPERS), contiguous; ``tile`` the one that ``net`` was
    made for.
    """
    m = len(x) if index is None else len(index)
    splits, rows_per_split = split_batch(m, net.tiles, tile.BLOCK_K, num_sms(x.device.index or 0))
    size = tile.BLOCK_M * tile.BLOCK_N + tile.BLOCK_M
    parts = net.tiles * splits * size if splits > 1 else 0
    launch(
        update_kernel,
        (net.tiles * splits,),
        net.rows, net.depth,
        x, x.stride(0), x.stride(1),
        index,
        *quantized.arguments(x_scale, x_shift),
        hypers,
        partial, num_partials,
        into.loss, into.sums,
        torch.empty(parts, device=x.device, dtype=torch.float32), into.counters, splits, rows_per_split,
        m,
        GATHER=index is not None,
        DEQUANT=quantized.dequant(x_scale, x_shift),
        MEAN=mean,
        RULE=rule,
        HAS_COPY=net.has_copies,
        ALIGNED=net.aligned,
        PDL=pdl,
        LAYERS=next_power_of_2(net.depth),
        DTYPE=TL_DTYPE[dtype],
        PRECISION=precision,
        **tile.options(),
    )  # fmt: skip
