"""A narrow network's whole backward in two launches, and a third to sum the splits of a long batch.

`mlp_backward_kernel` takes the gradient of BLOCK_M rows down through all layers on the chip,

    dZ[l] = (dZ[l + 1] W[l + 1]) * f'(saved[l]),

and writes each dZ once, laid out as the saved matrices are, (M, TOTAL). Where the forward saved
nothing the kernel runs it again first and writes what it will read.

`mlp_gradients_kernel` then forms every dW = dZᵀ X with db in one grid over all tiles of all layers. They go
to one flat buffer, of which the gradients are views; a long batch is split, each split has a row of a
workspace, and `sum_splits_kernel` adds the rows first to last: no atomics, the same bits every time.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastmlp.kernels.common.activations import mask_gradient, undo
from fastmlp.kernels.common.arguments import TL_DTYPE, Activation, Matrix, Source, Undo, activation, matrix
from fastmlp.kernels.common.device import cast, dot, store
from fastmlp.kernels.launch import cdiv, launch, launch_if, num_sms
from fastmlp.kernels.linear.backward import split_batch, weight_gradient
from fastmlp.kernels.mlp.forward import (
    Net,
    columns_of,
    hidden_layers,
    hidden_slopes,
    load_block,
    pick,
    places,
    slope_weight,
    store_block,
)
from fastmlp.kernels.tiles.configs import Tile


class Flat(NamedTuple):
    """Where a network's gradients go, as an argument of its kernels; see `Layout.PLACES` and `OFFSETS`."""

    params: Any  # dW and db of each layer
    slopes: Any  # of each hidden layer, float32; None if there is no PReLU
    workspace: Any  # (num_splits, both), float32


class Split(NamedTuple):
    """A part of the batch: ``rows`` examples; the last part may have fewer."""

    index: Any
    count: Any
    rows: Any


@triton.jit
def output_gradient(grad, out, rows, features, M, N, DTYPE: tl.constexpr):
    """A block of the output layer's dZ: dY, times the output activation's f'."""
    d = load_block(grad, rows, features, M, N)
    if out is not None:
        d = mask_gradient(d, load_block(out.saved, rows, features, M, N), out.act.slope, DTYPE, out.act.name)
    return cast(d, DTYPE)


@triton.jit
def through_activation(
    grad, saved, dz, act, layer, rows, features, M, N,
    DTYPE: tl.constexpr, LAYOUT: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """dZ of a hidden block from its dH; it is stored, except for a PReLU, whose slopes' gradient needs dH."""
    target = columns_of(dz, layer, LAYOUT)
    if act.weight is not None:
        store_block(target, rows, features, M, N, grad)
    s = load_block(columns_of(saved, layer, LAYOUT), rows, features, M, N).to(tl.float32)
    d = undo(grad, s, hidden_slopes(act, layer, features, N, LAYOUT)[None, :], act.name)
    if TILE.RAGGED:  # as in the forward
        d = tl.where(features[None, :] < N, d, 0.0)
    d = cast(d, DTYPE)
    if act.weight is None:
        store_block(target, rows, features, M, N, d)
    return d


@triton.jit
def gradient_block(d, weight, features, N, K, BLOCK: tl.constexpr, TILE: tl.constexpr):
    """dZ W for a block of W's columns: dZ (BLOCK_M, N) is a tuple of blocks of BLOCK_N features."""
    acc = tl.zeros((TILE.BLOCK_M, BLOCK), tl.float32)
    for j in tl.static_range(len(d)):
        n = j * TILE.BLOCK_N + tl.arange(0, TILE.BLOCK_N)
        acc = dot(d[j], load_block(Matrix(weight, K, 1), n, features, N, K), acc, d[j].dtype, TILE.PRECISION)
    return acc


@triton.jit(do_not_specialize=["M"])
def mlp_backward_kernel(
    grad,  # a Matrix (M, WIDTHS[-1]): dY
    x,  # a Matrix (M, WIDTHS[0]), to compute ``saved`` from; None where the forward left that
    net,  # Layers
    out,  # an Undo of the output's activation, or None
    saved, dz,  # (M, OFFSETS[-1]) contiguous; of a PReLU dz receives dH
    dout,  # the output layer's dZ (M, WIDTHS[-1]) contiguous, if ``out``
    dx,  # (M, WIDTHS[0]) contiguous, or None
    M,
    DTYPE: tl.constexpr,
    LAYOUT: tl.constexpr,
    TILE: tl.constexpr,  # Tiling
):  # fmt: skip
    rows = tl.program_id(0) * TILE.BLOCK_M + tl.arange(0, TILE.BLOCK_M)
    if x is not None:
        hidden_layers(x, net, saved, rows, M, DTYPE, LAYOUT, TILE)
        tl.debug_barrier()  # the program's other threads read what this one wrote

    WIDTHS: tl.constexpr = LAYOUT.WIDTHS
    LAST: tl.constexpr = len(WIDTHS) - 2
    N: tl.constexpr = WIDTHS[LAST + 1]
    K: tl.constexpr = WIDTHS[LAST]
    d = ()
    for i in tl.static_range(TILE.HIDDEN_BLOCKS):
        features = i * TILE.BLOCK_N + tl.arange(0, TILE.BLOCK_N)
        acc = tl.zeros((TILE.BLOCK_M, TILE.BLOCK_N), tl.float32)
        for start in range(0, N, TILE.BLOCK_OUT):
            n = start + tl.arange(0, TILE.BLOCK_OUT)
            of_out = output_gradient(grad, out, rows, n, M, N, DTYPE)
            if out is not None and i == 0:
                store_block(Matrix(dout, N, 1), rows, n, M, N, of_out)
            w = load_block(Matrix(net.weights[LAST], K, 1), n, features, N, K)
            acc = dot(of_out, w, acc, DTYPE, TILE.PRECISION)
        of_block = through_activation(
            acc, saved, dz, net.act, LAST - 1, rows, features, M, K, DTYPE, LAYOUT, TILE
        )
        d = d + (of_block,)  # type: ignore[assignment]
    for step in range(1, LAST):
        layer = LAST - step  # dZ of its output is d; that of its input follows
        n = pick(WIDTHS, layer + 1)
        k = pick(WIDTHS, layer)
        weight = pick(net.weights, layer)
        following = ()
        for i in tl.static_range(TILE.HIDDEN_BLOCKS):
            features = i * TILE.BLOCK_N + tl.arange(0, TILE.BLOCK_N)
            acc = gradient_block(d, weight, features, n, k, TILE.BLOCK_N, TILE)
            of_block = through_activation(
                acc, saved, dz, net.act, layer - 1, rows, features, M, k, DTYPE, LAYOUT, TILE
            )
            following = following + (of_block,)  # type: ignore[assignment]
        d = following
    if dx is not None:
        WIDTH: tl.constexpr = WIDTHS[0]
        for start in range(0, WIDTH, TILE.BLOCK_K):
            k = start + tl.arange(0, TILE.BLOCK_K)
            of_input = gradient_block(d, net.weights[0], k, WIDTHS[1], WIDTH, TILE.BLOCK_K, TILE)
            store_block(Matrix(dx, WIDTH, 1), rows, k, M, WIDTH, of_input)


@triton.jit
def store_gradients(params, slopes, rows, cols, N, K, once, found):
    """A tile of a layer's dW (N, K), and if ``once`` its rows of db and of the slopes' gradient."""
    store_block(Matrix(params, K, 1), rows, cols, N, K, found[0])
    store(params + N * K + rows, found[1], once)
    if slopes is not None:
        store(slopes + rows, found[2], once)


@triton.jit
def gradient_tile(
    tile, split, layer, x, grad, act, saved, dz, out, M,
    DTYPE: tl.constexpr, LAYOUT: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """One tile of a layer's dW (N, K) with db and the slopes' gradient, over one split of the batch.

    The first layer has its ``x``, the last its ``grad``; those of the others (None) are in the buffers.
    """
    N = pick(LAYOUT.WIDTHS, layer + 1)
    K = pick(LAYOUT.WIDTHS, layer)
    PRELU: tl.constexpr = grad is None and act.weight is not None
    tiles_k = tl.cdiv(K, TILE.BLOCK_N)
    # Never a constant: Triton 3.8's thread-locality pass fails on a float32 sum that a loop always makes.
    first_column = (tile % tiles_k == 0) & (split.count > 0)
    rows = tile // tiles_k * TILE.BLOCK_M + tl.arange(0, TILE.BLOCK_M)
    cols = tile % tiles_k * TILE.BLOCK_N + tl.arange(0, TILE.BLOCK_N)
    first = split.index * split.rows
    last = tl.minimum(first + split.rows, M)
    found = weight_gradient(
        rows, cols, first, last, first_column,
        columns_of(dz, layer, LAYOUT) if grad is None else grad,
        Undo(
            Activation(act.name, act.slope, slope_weight(act, layer, LAYOUT)),
            columns_of(saved, layer, LAYOUT), None,
        ) if PRELU else None, 0,
        Source(
            columns_of(saved, layer - 1, LAYOUT) if x is None else x, None, None, None,
            Activation(
                act.name, act.slope, None if act.weight is None else slope_weight(act, layer - 1, LAYOUT)
            ) if x is None and LAYOUT.SAVE_Z else None,
        ),
        N, K, DTYPE, TILE,
    )  # fmt: skip
    place = tl.multiple_of(pick(LAYOUT.PLACES, layer), 16)
    offset = tl.multiple_of(pick(LAYOUT.OFFSETS, layer), 16)
    once = (rows < N) & first_column
    if split.count == 1:
        store_gradients(
            out.params + place, out.slopes + offset if PRELU else None, rows, cols, N, K, once, found
        )
    else:
        SIZE: tl.constexpr = LAYOUT.PLACES[-1]
        SLOPES: tl.constexpr = 0 if act.weight is None else LAYOUT.OFFSETS[-1]
        workspace = out.workspace + split.index.to(tl.int64) * (SIZE + SLOPES)
        store_gradients(
            workspace + place, workspace + SIZE + offset if PRELU else None, rows, cols, N, K, once, found
        )


@triton.jit(do_not_specialize=["M", "num_splits", "rows_per_split"])
def mlp_gradients_kernel(
    x,  # a Matrix (M, WIDTHS[0])
    grad,  # a Matrix (M, WIDTHS[-1]): the output layer's dZ
    act,  # of the hidden layers, as in `Layers`
    saved, dz,  # (M, OFFSETS[-1]) contiguous
    out,  # Flat
    num_splits, rows_per_split,
    M,
    DTYPE: tl.constexpr,
    LAYOUT: tl.constexpr,
    TILES: tl.constexpr,  # before each layer's first tile, and their total
    TILE: tl.constexpr,  # Blocks
):  # fmt: skip
    """The first and the last layer read other tensors than those between, so each has its branch."""
    LAST: tl.constexpr = len(LAYOUT.WIDTHS) - 2
    pid = tl.program_id(0) % TILES[LAST + 1]
    split = Split(tl.program_id(0) // TILES[LAST + 1], num_splits, rows_per_split)
    if pid < TILES[1]:
        gradient_tile(pid, split, 0, x, None, act, saved, dz, out, M, DTYPE, LAYOUT, TILE)
    elif pid >= TILES[LAST]:
        pid -= TILES[LAST]
        gradient_tile(pid, split, LAST, None, grad, act, saved, dz, out, M, DTYPE, LAYOUT, TILE)
    elif LAST > 1:
        layer = 1
        for i in tl.static_range(2, LAST):
            layer = tl.where(pid >= TILES[i], i, layer)
        pid -= pick(TILES, layer)
        gradient_tile(pid, split, layer, None, None, act, saved, dz, out, M, DTYPE, LAYOUT, TILE)


@triton.jit(do_not_specialize=["num_splits"])
def sum_splits_kernel(out, num_splits, SIZE: tl.constexpr, SLOPES: tl.constexpr, BLOCK: tl.constexpr):
    """Sum the workspace of ``out`` (Flat) over the splits, first to last."""
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    acc = tl.zeros((BLOCK,), tl.float32)
    for split in range(0, num_splits):
        row = out.workspace + tl.cast(split, tl.int64) * (SIZE + SLOPES)
        acc += tl.load(row + offsets, mask=offsets < SIZE + SLOPES, other=0.0)
    store(out.params + offsets, acc, offsets < SIZE)
    if out.slopes is not None:
        tl.store(out.slopes + offsets - SIZE, acc, mask=(offsets >= SIZE) & (offsets < SIZE + SLOPES))


_SUM_BLOCK = 1024


class Gradients(NamedTuple):
    """A network's gradients; what was not asked for is None."""

    input: Tensor | None  # (M, K)
    params: Tensor | None  # flat: dW and then db of each layer, from `places` on
    slopes: Tensor | None  # PReLU's, flat, float32: of each hidden layer, (N,) from `saved_offsets` on

    def layers(self, widths: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        """Each layer's dW (N, K) and db (N,): views."""
        assert self.params is not None
        shapes = zip(itertools.pairwise(widths), places(widths))
        parts = [((n, k), self.params[start : start + n * k + n]) for (k, n), start in shapes]
        return [(flat[: n * k].view(n, k), flat[n * k :]) for (n, k), flat in parts]


def mlp_backward(
    grad: Tensor,
    x: Tensor,
    net: Net,
    saved: Tensor | None,
    out_saved: Tensor | None,
    *,
    need_input: bool,
    need_params: bool,
) -> Gradients:
    """Every gradient of the network from ``grad`` (M, N): at most three launches.

    ``saved`` is what the forward left; None computes it again. ``out_saved`` (M, N) is what the output
    activation's derivative is computed from.
    """
    m, layout = len(x), net.layout()
    constants = net.constants(layout, "_backward")

    def empty(columns: int) -> Tensor:
        return torch.empty((m, columns), device=x.device, dtype=net.dtype)

    recomputed = matrix(x) if saved is None else None
    saved = empty(layout.OFFSETS[-1]) if saved is None else saved
    dz = empty(layout.OFFSETS[-1])
    dx = empty(layout.WIDTHS[0]) if need_input else None
    out = dout = None
    if net.out_act != "none":
        out = Undo(activation(net.out_act, net.out_slope), matrix(out_saved), None)
        dout = empty(layout.WIDTHS[-1])
    launch(
        mlp_backward_kernel,
        (cdiv(m, constants["TILE"].BLOCK_M),),
        matrix(grad), recomputed, net.layers(), out, saved, dz, dout, dx, m,
        **constants,
    )  # fmt: skip
    if not need_params:
        return Gradients(dx, None, None)
    flat = _parameter_gradients(grad if dout is None else dout, x, net, saved, dz)
    return Gradients(dx, flat.params, flat.slopes)


def _parameter_gradients(dout: Tensor, x: Tensor, net: Net, saved: Tensor, dz: Tensor) -> Flat:
    m, device, layout = len(x), x.device, net.layout()
    tile = net.tile("mlp_gradients")
    tiles = _tiles(tile, layout.WIDTHS)
    size, slopes = layout.PLACES[-1], layout.OFFSETS[-1] if net.act == "prelu" else 0
    splits, rows_per_split = split_batch(m, tiles[-1], tile.BLOCK_K, num_sms(device.index or 0))
    flat = Flat(
        torch.empty(size, device=device, dtype=net.weights[0].dtype),
        torch.empty(slopes, device=device, dtype=torch.float32) if slopes else None,
        # Always there, so that the number of splits never changes the kernel.
        torch.empty((splits if splits > 1 else 0, size + slopes), device=device, dtype=torch.float32),
    )
    launch(
        mlp_gradients_kernel,
        (tiles[-1] * splits,),
        matrix(x), matrix(dout), net.hidden(), saved, dz, flat, splits, rows_per_split, m,
        DTYPE=TL_DTYPE[net.dtype],
        LAYOUT=layout,
        TILES=tiles,
        TILE=tile.blocks(1, net.precision),  # EVEN_K, which would depend on the batch, is not read
        **tile.options,
    )  # fmt: skip
    blocks = cdiv(size + slopes, _SUM_BLOCK)
    launch_if(
        splits > 1, sum_splits_kernel, (blocks,), flat, splits, SIZE=size, SLOPES=slopes, BLOCK=_SUM_BLOCK
    )
    return flat


@lru_cache
def _tiles(tile: Tile, widths: tuple[int, ...]) -> tuple[int, ...]:
    """Before each layer's first tile, and their total."""
    shapes = itertools.pairwise(widths)
    each = (cdiv(n, tile.BLOCK_M) * cdiv(k, tile.BLOCK_N) for k, n in shapes)
    return tuple(itertools.accumulate(each, initial=0))
