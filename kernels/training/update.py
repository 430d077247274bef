"""Every dW and db of a network and the optimizer's update in one launch.

A program computes one tile of one layer's dW = dZᵀ X and applies it: the gradients never reach memory.
Weights stay float32; where products run in 16 bits a copy in that dtype is written beside.

Each program of the head leaves its sums; only here is it known what the mean is divided by, which every
program adds up in a fixed order. Over a long batch several programs share a tile: each leaves its part in
a workspace, and the last to arrive adds the parts up, first to last, so that runs are bitwise repeatable.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastmlp.kernels.common.arguments import TL_DTYPE, Source
from fastmlp.kernels.common.device import store, tile_of, wait_for_previous
from fastmlp.kernels.common.quantized import dequantize_gradient
from fastmlp.kernels.launch import launch, num_sms
from fastmlp.kernels.linear.backward import split_batch, weight_gradient
from fastmlp.kernels.loss.softmax import mean_loss
from fastmlp.kernels.tiles.configs import Tile
from fastmlp.kernels.training.layer_table import (
    COLUMNS,
    COPY,
    DZ,
    FIRST_TILE,
    GROUP,
    B,
    Table,
    W,
    X,
    load_features,
    load_matrix,
    load_pointer,
    width,
)
from fastmlp.kernels.training.optimizers import HYPERS, State, apply
from fastmlp.kernels.training.recipe import Recipe


class Accumulators(NamedTuple):
    """The head's sums of a step, and what an update writes besides the weights."""

    partial: Any  # (3, programs of the head) float32
    loss: Any  # () float32
    sums: Any  # (2,) float64
    arrived: Any  # programs at each tile, (tiles,) int32, zero between launches; or at an epoch's barrier


class Place(NamedTuple):
    """A tile of a layer's weight (N, K)."""

    layer: Any
    row: Any  # the layer's in the table
    N: Any
    K: Any
    rows: Any
    cols: Any


@triton.jit
def locate(net, num_layers, tile, TILE: tl.constexpr):
    """Where tile number ``tile`` is."""
    i = tl.arange(0, net.slots)
    starts = tl.load(net.rows + i * COLUMNS + FIRST_TILE, mask=i < num_layers, other=1 << 62)
    layer = tl.sum((starts <= tile).to(tl.int32), 0) - 1
    row = net.rows + layer * COLUMNS
    n, k = load_features(row, net.factor)
    inside = tile - tl.load(row + FIRST_TILE).to(tl.int32)
    pid_n, pid_k = tile_of(inside, tl.cdiv(n, TILE.BLOCK_M), tl.cdiv(k, TILE.BLOCK_N), TILE.GROUP_M)
    rows = pid_n * TILE.BLOCK_M + tl.arange(0, TILE.BLOCK_M)
    return Place(layer, row, n, k, rows, pid_k * TILE.BLOCK_N + tl.arange(0, TILE.BLOCK_N))


@triton.jit
def reloaded(net, place):
    """``place``, its sizes loaded anew: what follows from them is computed again rather than kept."""
    n, k = load_features(place.row, net.factor)
    return Place(place.layer, place.row, n, k, place.rows, place.cols)


@triton.jit
def in_weight(place):
    """The offsets of a tile's elements, and which of them are in the weight."""
    offsets = place.rows[:, None].to(tl.int64) * place.K + place.cols[None, :]
    return offsets, (place.rows[:, None] < place.N) & (place.cols[None, :] < place.K)


@triton.jit
def load_state(row, offsets, ok, PARAMETER: tl.constexpr, RULE: tl.constexpr):
    """Elements of a layer's weight or bias (PARAMETER: W or B) with their state."""
    value = tl.load(load_pointer(row, PARAMETER, tl.float32) + offsets, mask=ok, other=0.0)
    first = value
    second = value
    if RULE != "sgd":
        first = tl.load(load_pointer(row, PARAMETER + 1, tl.float32) + offsets, mask=ok, other=0.0)
    if RULE == "adam":
        second = tl.load(load_pointer(row, PARAMETER + 2, tl.float32) + offsets, mask=ok, other=0.0)
    return State(value, first, second)


@triton.jit
def store_state(row, offsets, ok, state, PARAMETER: tl.constexpr, RULE: tl.constexpr):
    tl.store(load_pointer(row, PARAMETER, tl.float32) + offsets, state.value, mask=ok)
    if RULE != "sgd":
        tl.store(load_pointer(row, PARAMETER + 1, tl.float32) + offsets, state.first, mask=ok)
    if RULE == "adam":
        tl.store(load_pointer(row, PARAMETER + 2, tl.float32) + offsets, state.second, mask=ok)


@triton.jit
def sum_partials(partial_ptr, count):
    """The programs' sums added up, always in the same order."""
    total = tl.zeros((128,), tl.float32)
    for start in range(0, count, 128):
        i = start + tl.arange(0, 128)
        total += tl.load(partial_ptr + i, mask=i < count, other=0.0)
    return tl.sum(total, 0)


@triton.jit
def gradient_scale(into, num_partials, REDUCTION: tl.constexpr):
    """What the head's gradients are multiplied by; 0 where no row counts."""
    if REDUCTION == "mean":
        weight = sum_partials(into.partial + num_partials, num_partials)
        return tl.where(weight == 0, 0.0, 1.0 / weight)
    else:
        return 1.0


@triton.jit
def finish_step(into, num_partials, M, REDUCTION: tl.constexpr):
    """The step's loss, and the epoch's sums of loss * rows and of right answers. For one program to do."""
    loss = sum_partials(into.partial, num_partials)
    if REDUCTION == "mean":
        loss = mean_loss(loss, sum_partials(into.partial + num_partials, num_partials))
    tl.store(into.loss, loss)
    right = sum_partials(into.partial + 2 * num_partials, num_partials)
    tl.store(into.sums, tl.load(into.sums) + loss.to(tl.float64) * M)
    tl.store(into.sums + 1, tl.load(into.sums + 1) + right.to(tl.float64))


@triton.jit
def tile_gradient(
    place, x, begin, end, PADDED: tl.constexpr, DTYPE: tl.constexpr, TILE: tl.constexpr
):  # fmt: skip
    """A tile of dZᵀ X over the examples from ``begin`` to ``end``, and dZ's sums (of the first column).

    ``x`` is the first layer's X; the others' are in the table. With PADDED these and dZ are read to the
    end of their padded rows, 16 bytes at a time: the padding reaches no element that is in the weight.
    """
    first_column = tl.min(place.cols, 0) == 0
    dz = load_matrix(place.row, DZ, DTYPE)
    if place.layer == 0:
        acc, bias, _ = weight_gradient(
            place.rows, place.cols, begin, end, (x.shift is not None) or first_column,
            dz, None, 0, x, width(place.N, PADDED), place.K, DTYPE, TILE,
        )  # fmt: skip
        acc, bias = dequantize_gradient(acc, bias, x, place.cols, place.K)
    else:
        acc, bias, _ = weight_gradient(
            place.rows, place.cols, begin, end, first_column,
            dz, None, 0, Source(load_matrix(place.row, X, DTYPE)),
            width(place.N, PADDED), width(place.K, PADDED), DTYPE, TILE,
        )  # fmt: skip
    return acc, bias


@triton.jit
def apply_tile(
    net, place, state, g, bias_g, hyper_ptr, RULE: tl.constexpr, KEEP: tl.constexpr, DTYPE: tl.constexpr
):
    """Update a tile and, in the first column of tiles, the bias. With KEEP the new tile is not stored.

    The copy that the next forward reads is always stored; for float32 that is the weight.
    """
    state = apply(state, g, hyper_ptr + tl.load(place.row + W + GROUP) * HYPERS, RULE)
    offsets, ok = in_weight(place)
    if not KEEP:
        store_state(place.row, offsets, ok, state, W, RULE)
    if net.copies:
        store(load_pointer(place.row, COPY, DTYPE) + offsets, state.value, ok)
    elif KEEP:
        tl.store(load_pointer(place.row, W, tl.float32) + offsets, state.value, mask=ok)
    has_bias = (tl.min(place.cols, 0) == 0) & (tl.load(place.row + B) != 0)
    ok = (place.rows < place.N) & has_bias
    bias = load_state(place.row, place.rows, ok, B, RULE)
    bias = apply(bias, bias_g, hyper_ptr + tl.load(place.row + B + GROUP) * HYPERS, RULE)
    store_state(place.row, place.rows, ok, bias, B, RULE)
    return state


@triton.jit(do_not_specialize=["num_layers", "num_partials", "splits", "rows_per_split", "M"])
def update_kernel(
    net, num_layers,  # a TableArgument
    x,  # a Source: the first layer's input (M, K)
    hyper_ptr,  # (groups, HYPERS)
    into, num_partials,  # Accumulators
    workspace_ptr, splits, rows_per_split,
    M,
    RULE: tl.constexpr,
    REDUCTION: tl.constexpr,
    PDL: tl.constexpr,
    DTYPE: tl.constexpr,
    TILE: tl.constexpr,  # Blocks
):  # fmt: skip
    wait_for_previous(PDL)
    tile = tl.program_id(0) // splits
    split = tl.program_id(0) % splits
    place = locate(net, num_layers, tile, TILE)
    begin = split * rows_per_split
    g, bias_g = tile_gradient(place, x, begin, tl.minimum(begin + rows_per_split, M), True, DTYPE, TILE)
    arrived = 0
    if splits > 1:
        SIZE: tl.constexpr = (TILE.BLOCK_N + 1) * TILE.BLOCK_M
        in_tile = tl.arange(0, TILE.BLOCK_M)[:, None] * TILE.BLOCK_N + tl.arange(0, TILE.BLOCK_N)[None, :]
        in_bias = TILE.BLOCK_M * TILE.BLOCK_N + tl.arange(0, TILE.BLOCK_M)
        parts = workspace_ptr + tile.to(tl.int64) * splits * SIZE
        tl.store(parts + split * SIZE + in_tile, g)
        tl.store(parts + split * SIZE + in_bias, bias_g)
        tl.debug_barrier()  # all threads' stores come before the arrival
        arrived = tl.atomic_add(into.arrived + tile, 1, sem="acq_rel") - (splits - 1)
        if arrived == 0:  # the last one: every part is there
            g = tl.zeros((TILE.BLOCK_M, TILE.BLOCK_N), tl.float32)
            bias_g = tl.zeros((TILE.BLOCK_M,), tl.float32)
            for i in range(0, splits):
                g += tl.load(parts + i * SIZE + in_tile)
                bias_g += tl.load(parts + i * SIZE + in_bias)
            tl.store(into.arrived + tile, 0)  # as the next launch wants it
    if arrived == 0:
        scale = gradient_scale(into, num_partials, REDUCTION)
        offsets, ok = in_weight(place)
        state = load_state(place.row, offsets, ok, W, RULE)
        apply_tile(net, reloaded(net, place), state, g * scale, bias_g * scale, hyper_ptr, RULE, False, DTYPE)
    if tl.program_id(0) == 0:
        finish_step(into, num_partials, M, REDUCTION)


def update(
    net: Table,
    recipe: Recipe,
    x: Source,
    batch: int,
    hypers: Tensor,
    into: Accumulators,
    programs: int,
    tile: Tile,
) -> None:
    """All gradients of ``net``'s parameters, and the step of the recipe's rule with them. One launch.

    ``x`` the first layer's input, of ``batch`` rows; hypers (groups, HYPERS), contiguous; the head left the
    sums of so many ``programs``; ``tile`` the one that ``net`` was made for.
    """
    device = hypers.device
    splits, rows_per_split = split_batch(batch, net.tiles, tile.BLOCK_K, num_sms(device.index or 0))
    parts = net.tiles * splits * (tile.BLOCK_N + 1) * tile.BLOCK_M if splits > 1 else 0
    launch(
        update_kernel,
        (net.tiles * splits,),
        net.argument, net.depth,
        x,
        hypers,
        into, programs,
        torch.empty(parts, device=device, dtype=torch.float32), splits, rows_per_split,
        batch,
        RULE=recipe.rule,
        REDUCTION=recipe.reduction,
        PDL=recipe.pdl,
        DTYPE=TL_DTYPE[recipe.dtype],
        TILE=tile.blocks(1, recipe.precision),
        **tile.options,
    )  # fmt: skip
