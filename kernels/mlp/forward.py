"""A narrow network's whole forward in one kernel: activations never leave the chip.

A program takes BLOCK_M rows through all layers. An activation is a tuple of blocks of BLOCK_N features
in registers, so that a width of several blocks needs no more shared memory than one block of a weight:

    block j of the next layer = f(Σ_i block_i · W[j, i]ᵀ + b[j])

The layers are a loop, whatever the depth, so that Triton's pipeliner loads the next layer's weights while
this one multiplies. Their pointers are a tuple of arguments that `pick` chooses from: nothing is copied into
one buffer first. The input and the output may be of any width; they are walked over in blocks. For training
each hidden layer leaves one matrix, from which the backward computes its derivative, and the
activation's output too. Those of all layers stand side by side in one (M, TOTAL) buffer.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastmlp.kernels.common.activations import activate
from fastmlp.kernels.common.arguments import (
    TL_DTYPE,
    Activation,
    Matrix,
    Vector,
    activation,
    at,
    load_vector,
    matrix,
    slopes_of,
)
from fastmlp.kernels.common.device import cast, dot, store
from fastmlp.kernels.launch import arch_of, cdiv, launch, next_power_of_2
from fastmlp.kernels.tiles import configs
from fastmlp.kernels.tiles.configs import Tile

#: The widest hidden layer that any tile is for; `fastmlp.costs.choice` has the limits by precision.
MAX_WIDTH = 256
#: Columns of the saved buffer start at multiples of so many elements.
ALIGNMENT = 16


class Layers(NamedTuple):
    """A network's layers, as an argument of its kernels."""

    weights: Any  # (N, K) of each, contiguous
    biases: Any  # (N,) of each, contiguous, or None
    act: Activation  # of the hidden layers; its weight is a tuple: PReLU's of each


class Layout(NamedTuple):
    """What the compiler knows of a network; the last of the offsets and of the places is their total."""

    WIDTHS: tuple[int, ...]  # of the input and of every layer
    OFFSETS: tuple[int, ...]  # of each hidden layer's columns in the saved buffer
    PLACES: tuple[int, ...]  # of each layer's dW, and then db, in the flat gradients
    STRIDES: tuple[int, ...]  # of each hidden layer's slopes
    SAVE_Z: bool  # the hidden f' is computed from f's input


class Tiling(NamedTuple):
    """How a program of the forward or of the chain of gradients walks over its rows."""

    BLOCK_M: int
    BLOCK_N: int  # of a hidden layer's features
    BLOCK_K: int  # of the input's
    BLOCK_OUT: int  # of the output's
    HIDDEN_BLOCKS: int  # of BLOCK_N features, in the widest hidden layer
    RAGGED: bool  # BLOCK_N does not divide every hidden width
    PRECISION: str


@triton.jit
def pick(items, layer):
    """items[layer], pointers or numbers, where ``layer`` may be known only as the kernel runs."""
    item = items[0]
    for i in tl.static_range(1, len(items)):
        item = tl.where(layer == i, items[i], item)
    return item


@triton.jit
def load_block(matrix, rows, cols, num_rows, num_cols):
    """A block of a matrix of so many rows and columns; 0 outside."""
    inside = (rows[:, None] < num_rows) & (cols[None, :] < num_cols)
    return tl.load(at(matrix, rows, cols), mask=inside, other=0.0)


@triton.jit
def store_block(matrix, rows, cols, num_rows, num_cols, block):
    """Write a block of a matrix of so many rows and columns, in its dtype."""
    inside = (rows[:, None] < num_rows) & (cols[None, :] < num_cols)
    store(at(matrix, rows, cols), block, inside)


@triton.jit
def columns_of(buffer, layer, LAYOUT: tl.constexpr):
    """A hidden layer's columns of a buffer that holds those of all."""
    return Matrix(buffer + tl.multiple_of(pick(LAYOUT.OFFSETS, layer), 16), LAYOUT.OFFSETS[-1], 1)


@triton.jit
def slope_weight(act, layer, LAYOUT: tl.constexpr):
    """PReLU's weight of a hidden layer."""
    return Vector(pick(act.weight, layer), pick(LAYOUT.STRIDES, layer))


@triton.jit
def hidden_slopes(act, layer, features, N, LAYOUT: tl.constexpr):
    """A hidden layer's negative slopes."""
    if act.weight is None:
        return slopes_of(act, features, N)
    else:
        return load_vector(slope_weight(act, layer, LAYOUT), features, N)


@triton.jit
def input_block(x, rows, M, weight, features, N, K, DTYPE: tl.constexpr, TILE: tl.constexpr):
    """X Wᵀ for a block of rows and one of features: X (M, K) comes from memory."""
    acc = tl.zeros((TILE.BLOCK_M, TILE.BLOCK_N), tl.float32)
    for start in range(0, K, TILE.BLOCK_K):
        k = start + tl.arange(0, TILE.BLOCK_K)
        # Wᵀ is loaded as it is multiplied, so that the copy to shared memory needs no registers.
        w = load_block(Matrix(weight, 1, K), k, features, K, N)
        acc = dot(load_block(x, rows, k, M, K), w, acc, DTYPE, TILE.PRECISION)
    return acc


@triton.jit
def product_block(h, weight, features, N, K, BLOCK: tl.constexpr, TILE: tl.constexpr):
    """H Wᵀ for a block of features: H (BLOCK_M, K) is a tuple of blocks of BLOCK_N features on the chip."""
    acc = tl.zeros((TILE.BLOCK_M, BLOCK), tl.float32)
    for i in tl.static_range(len(h)):
        k = i * TILE.BLOCK_N + tl.arange(0, TILE.BLOCK_N)
        acc = dot(h[i], load_block(Matrix(weight, 1, K), k, features, K, N), acc, h[i].dtype, TILE.PRECISION)
    return acc


@triton.jit
def add_bias(z, biases, layer, features, N):
    """z + b of a layer, if it has a bias; for one that has none another's is picked, and masked."""
    bias = biases[0]
    given = biases[0] is not None
    for i in tl.static_range(1, len(biases)):
        given = tl.where(layer == i, biases[i] is not None, given)
        if biases[i] is not None:
            bias = biases[i] if bias is None else tl.where(layer == i, biases[i], bias)
    if bias is not None:
        bias = tl.load(bias + features, mask=(features < N) & given, other=0.0)
        z += bias.to(tl.float32)[None, :]
    return z


@triton.jit
def hidden_block(
    z, net, layer, saved, rows, features, M, N,
    DTYPE: tl.constexpr, LAYOUT: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """f(z + b) in DTYPE; what f' is computed from goes to its columns of ``saved``, if there is one."""
    z = add_bias(z, net.biases, layer, features, N)
    if LAYOUT.SAVE_Z:  # all that the backward has: f of the same number makes both passes agree, saved or not
        z = cast(z, DTYPE)
    slopes = hidden_slopes(net.act, layer, features, N, LAYOUT)
    y = activate(z.to(tl.float32), slopes[None, :], net.act.name)
    if TILE.RAGGED:  # an infinite input times the 0 of a weight that is not there is NaN, and would spread
        y = tl.where(features[None, :] < N, y, 0.0)
    y = cast(y, DTYPE)
    if saved is not None:
        kept = z if LAYOUT.SAVE_Z else y
        store_block(columns_of(saved, layer, LAYOUT), rows, features, M, N, kept)
    return y


@triton.jit
def hidden_layers(x, net, saved, rows, M, DTYPE: tl.constexpr, LAYOUT: tl.constexpr, TILE: tl.constexpr):
    """The last hidden layer's output, a tuple of blocks rounded to DTYPE."""
    WIDTHS: tl.constexpr = LAYOUT.WIDTHS
    h = ()
    for j in tl.static_range(TILE.HIDDEN_BLOCKS):
        features = j * TILE.BLOCK_N + tl.arange(0, TILE.BLOCK_N)
        z = input_block(x, rows, M, net.weights[0], features, WIDTHS[1], WIDTHS[0], DTYPE, TILE)
        y = hidden_block(z, net, 0, saved, rows, features, M, WIDTHS[1], DTYPE, LAYOUT, TILE)
        h = h + (y,)  # type: ignore[assignment]
    for layer in range(1, len(WIDTHS) - 2):
        n = pick(WIDTHS, layer + 1)
        k = pick(WIDTHS, layer)
        weight = pick(net.weights, layer)
        following = ()
        for j in tl.static_range(TILE.HIDDEN_BLOCKS):
            features = j * TILE.BLOCK_N + tl.arange(0, TILE.BLOCK_N)
            z = product_block(h, weight, features, n, k, TILE.BLOCK_N, TILE)
            y = hidden_block(z, net, layer, saved, rows, features, M, n, DTYPE, LAYOUT, TILE)
            following = following + (y,)  # type: ignore[assignment]
        h = following
    return h


@triton.jit(do_not_specialize=["M"])
def mlp_forward_kernel(
    x,  # a Matrix (M, WIDTHS[0])
    net,  # Layers
    out,  # the output layer's Activation
    saved,  # (M, OFFSETS[-1]) contiguous: each hidden layer's Y, or Z if SAVE_Z; or None
    y, z,  # (M, WIDTHS[-1]) contiguous; Z, the output activation's input, or None
    M,
    DTYPE: tl.constexpr,
    LAYOUT: tl.constexpr,
    TILE: tl.constexpr,  # Tiling
):  # fmt: skip
    rows = tl.program_id(0) * TILE.BLOCK_M + tl.arange(0, TILE.BLOCK_M)
    h = hidden_layers(x, net, saved, rows, M, DTYPE, LAYOUT, TILE)
    WIDTHS: tl.constexpr = LAYOUT.WIDTHS
    LAST: tl.constexpr = len(WIDTHS) - 2
    K: tl.constexpr = WIDTHS[LAST]
    N: tl.constexpr = WIDTHS[LAST + 1]
    for start in range(0, N, TILE.BLOCK_OUT):
        features = start + tl.arange(0, TILE.BLOCK_OUT)
        block = product_block(h, net.weights[LAST], features, N, K, TILE.BLOCK_OUT, TILE)
        block = add_bias(block, net.biases, LAST, features, N)
        if z is not None:
            store_block(Matrix(z, N, 1), rows, features, M, N, block)
        store_block(Matrix(y, N, 1), rows, features, M, N, activate(block, out.slope, out.name))


def saved_offsets(hidden: Sequence[int]) -> tuple[int, ...]:
    """Where each hidden layer's columns start in the saved buffer, and how many there are in all."""
    return _starts(hidden)


def places(widths: Sequence[int]) -> tuple[int, ...]:
    """Where each layer's dW and db start in the flat gradients, and how long these are."""
    return _starts(n * k + n for k, n in itertools.pairwise(widths))


def _starts(sizes: Iterable[int]) -> tuple[int, ...]:
    """Where parts start that follow one another, each at a multiple of ALIGNMENT; and the total."""
    return tuple(itertools.accumulate((cdiv(n, ALIGNMENT) * ALIGNMENT for n in sizes), initial=0))


class Net(NamedTuple):
    """A network as its launchers take it: every tensor contiguous, every hidden layer with the same f."""

    weights: Sequence[Tensor]  # (N, K) of each layer
    biases: Sequence[Tensor | None]  # (N,)
    slope_weights: Sequence[Tensor | None]  # PReLU's of each hidden layer, (1,) or (N,)
    act: str
    slope: float
    out_act: str
    out_slope: float
    saves_z: bool  # the hidden f' is computed from f's input
    dtype: torch.dtype
    precision: str

    @property
    def widths(self) -> tuple[int, ...]:
        """Features of the input and of every layer."""
        return (self.weights[0].shape[1], *(w.shape[0] for w in self.weights))

    @property
    def offsets(self) -> tuple[int, ...]:
        """See `saved_offsets`."""
        return saved_offsets(self.widths[1:-1])

    def layout(self) -> Layout:
        """What its kernels are compiled for."""
        strides = [0 if s is None or s.numel() == 1 else 1 for s in self.slope_weights]
        return _layout(self.widths, tuple(strides), self.saves_z)

    def layers(self) -> Layers:
        """The kernels' argument."""
        return Layers(tuple(self.weights), tuple(self.biases), self.hidden())

    def hidden(self) -> Activation:
        """The hidden layers' activation, as `Layers` has it."""
        slopes = tuple(self.slope_weights) if self.act == "prelu" else None
        return Activation(tl.constexpr(self.act), self.slope, slopes)  # type: ignore[arg-type]

    def tile(self, family: str) -> Tile:
        """The table's, for its widest hidden layer."""
        widest = max(self.widths[1:-1])
        kind = configs.precision_class(self.dtype, self.precision)
        return configs.lookup(family, arch_of(self.weights[0]), kind, widest, widest)

    def constants(self, layout: Layout, suffix: str = "") -> dict[str, Any]:
        """What the launch of the forward, or of the chain of gradients, is compiled for."""
        tile = self.tile(("mlp_wide" if max(layout.WIDTHS[1:-1]) > 128 else "mlp") + suffix)
        return {
            "DTYPE": TL_DTYPE[self.dtype],
            "LAYOUT": layout,
            "TILE": _tiling(tile, layout.WIDTHS, self.precision),
            **tile.options,
        }


@lru_cache
def _layout(widths: tuple[int, ...], strides: tuple[int, ...], saves_z: bool) -> Layout:
    return Layout(widths, saved_offsets(widths[1:-1]), places(widths), strides, saves_z)


@lru_cache
def _tiling(tile: Tile, widths: tuple[int, ...], precision: str) -> Tiling:
    """The tile, cut where the widths are smaller."""
    hidden = widths[1:-1]
    n = _block(max(hidden), tile.BLOCK_N)
    return Tiling(
        BLOCK_M=tile.BLOCK_M,
        BLOCK_N=n,
        BLOCK_K=_block(widths[0], tile.BLOCK_K),
        BLOCK_OUT=_block(widths[-1], n),
        HIDDEN_BLOCKS=cdiv(max(hidden), n),
        RAGGED=any(width % n for width in hidden),
        PRECISION=precision,
    )


def _block(size: int, most: int) -> int:
    """A block for ``size`` features: a power of two, which tensor cores take from 16 on."""
    return min(max(next_power_of_2(size), 16), most)


def mlp_forward(
    x: Tensor, net: Net, *, save: bool, keep_z: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Y (M, N) of the network; with ``save`` the hidden layers' matrices, with ``keep_z`` the output's Z.

    x (M, K) of any strides, M not 0; at least two layers, hidden widths of at most `MAX_WIDTH`. One launch.
    """
    m, layout = len(x), net.layout()
    constants = net.constants(layout)
    y = torch.empty((m, layout.WIDTHS[-1]), device=x.device, dtype=net.dtype)
    z = torch.empty_like(y) if keep_z else None
    saved = torch.empty((m, layout.OFFSETS[-1]), device=x.device, dtype=net.dtype) if save else None
    launch(
        mlp_forward_kernel,
        (cdiv(m, constants["TILE"].BLOCK_M),),
        matrix(x), net.layers(), activation(net.out_act, net.out_slope), saved, y, z, m,
        **constants,
    )  # fmt: skip
    return y, saved, z
