"""A narrow network's whole forward in one kernel: activations never leave the chip.

A program takes BLOCK_M rows through all layers. An activation is a tuple of blocks of BLOCK_N features
in registers, so that a width of several blocks needs no more shared memory than one block of a weight:

    block j of the next layer = f(Σ_i block_i · W[j, i]ᵀ + b[j])

The layers are a loop, whatever the depth, so that Triton's pipeliner loads the next layer's weights while
this one multiplies. Their pointers are a tuple of arguments that `pick` chooses from: nothing is copied into
one buffer first. The input and the output may be of any width; they are walked over in blocks. For training
each hidden layer leaves one matrix, what its derivative is computed from; the backward has
the activation's output from it too. Those of all layers stand side by side in one (M, TOTAL) buffer.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastmlp.kernels import configs
from fastmlp.kernels.activations import activate
from fastmlp.kernels.arguments import TL_DTYPE
from fastmlp.kernels.configs import Tile
from fastmlp.kernels.device import cast, dot, load_slopes, pointers, store
from fastmlp.kernels.launch import arch_of, cdiv, launch, next_power_of_2
from fastmlp.kernels.linear import slope_stride

#: The widest hidden layer that any tile is for; `fastmlp.choice` has the limits by precision.
MAX_WIDTH = 256
#: Columns of the saved buffer start at multiples of so many elements.
ALIGNMENT = 16


@triton.jit
def pick(items, layer):
    """items[layer] of a layer that is known only as the kernel runs: pointers, or numbers."""
    item = items[0]
    for i in tl.static_range(1, len(items)):
        item = tl.where(layer == i, items[i], item)
    return item


@triton.jit
def weight_block(w_ptr, rows, cols, N, K):
    """W[rows, cols] of a contiguous W (N, K); 0 outside."""
    w = pointers(w_ptr, rows, cols, K, 1)
    return tl.load(w, mask=(rows[:, None] < N) & (cols[None, :] < K), other=0.0)


@triton.jit
def transposed_block(w_ptr, rows, cols, N, K):
    """Wᵀ[cols, rows]: loaded as it is multiplied, so that the copy to shared memory needs no registers."""
    w = pointers(w_ptr, cols, rows, 1, K)
    return tl.load(w, mask=(cols[:, None] < K) & (rows[None, :] < N), other=0.0)


@triton.jit
def input_block(
    x_ptr, stride_xm, stride_xk, rows, M, w_ptr, features, N, K,
    DTYPE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """X Wᵀ for a block of rows and one of features: X (M, K) comes from memory."""
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, K, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        x = pointers(x_ptr, rows, k, stride_xm, stride_xk)
        x = tl.load(x, mask=(rows[:, None] < M) & (k[None, :] < K), other=0.0)
        acc = dot(x, transposed_block(w_ptr, features, k, N, K), acc, DTYPE, PRECISION)
    return acc


@triton.jit
def product_block(
    h, w_ptr, features, N, K, DTYPE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    """H Wᵀ for a block of features: H (BLOCK_M, K) is a tuple of blocks of BLOCK_H features on the chip."""
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for i in tl.static_range(len(h)):
        k = i * BLOCK_H + tl.arange(0, BLOCK_H)
        acc = dot(h[i], transposed_block(w_ptr, features, k, N, K), acc, DTYPE, PRECISION)
    return acc


@triton.jit
def add_bias(z, b_ptr, features, N, has_bias):
    bias = tl.load(b_ptr + features, mask=(features < N) & (has_bias != 0), other=0.0)
    return z + bias.to(tl.float32)[None, :]


@triton.jit
def hidden_block(
    z, b_ptr, has_bias, slope_ptr, stride_slope, slope, saved_ptr, offset, rows, features, M, N,
    TOTAL: tl.constexpr, RAGGED: tl.constexpr, ACT: tl.constexpr, SAVE: tl.constexpr, SAVE_Z: tl.constexpr,
    DTYPE: tl.constexpr,
):  # fmt: skip
    """f(z + b) in DTYPE; with SAVE what f' is computed from goes to its columns of the saved buffer."""
    z = add_bias(z, b_ptr, features, N, has_bias)
    if SAVE_Z:  # all that the backward has: f of the same number makes both passes agree, saved or not
        z = cast(z, DTYPE)
    slopes = load_slopes(slope_ptr, slope, stride_slope, features, N, ACT)
    y = activate(z.to(tl.float32), slopes[None, :], ACT)
    if RAGGED:  # an infinite input times the 0 of a weight that is not there is NaN, and would spread
        y = tl.where(features[None, :] < N, y, 0.0)
    y = cast(y, DTYPE)
    if SAVE:
        inside = (rows[:, None] < M) & (features[None, :] < N)
        tl.store(pointers(saved_ptr, rows, offset + features, TOTAL, 1), z if SAVE_Z else y, mask=inside)
    return y


@triton.jit
def hidden_layers(
    x_ptr, stride_xm, stride_xk, weights, biases, slopes, slope, saved_ptr, rows, M,
    WIDTHS: tl.constexpr, OFFSETS: tl.constexpr, HAS_BIAS: tl.constexpr, STRIDE_SLOPE: tl.constexpr,
    RAGGED: tl.constexpr, ACT: tl.constexpr, SAVE: tl.constexpr, SAVE_Z: tl.constexpr,
    DTYPE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCKS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """The last hidden layer's output, a tuple of blocks rounded to DTYPE."""
    HIDDEN: tl.constexpr = len(WIDTHS) - 2
    TOTAL: tl.constexpr = OFFSETS[HIDDEN]
    h = ()
    for j in tl.static_range(BLOCKS):
        features = j * BLOCK_N + tl.arange(0, BLOCK_N)
        z = input_block(
            x_ptr, stride_xm, stride_xk, rows, M, weights[0], features, WIDTHS[1], WIDTHS[0],
            DTYPE, PRECISION, BLOCK_M, BLOCK_N, BLOCK_K,
        )  # fmt: skip
        y = hidden_block(
            z, biases[0], HAS_BIAS[0], slopes[0], STRIDE_SLOPE[0], slope, saved_ptr, 0, rows, features, M,
            WIDTHS[1], TOTAL, RAGGED, ACT, SAVE, SAVE_Z, DTYPE,
        )  # fmt: skip
        h = h + (y,)  # type: ignore[assignment]
    for layer in range(1, HIDDEN):
        n = pick(WIDTHS, layer + 1)
        k = pick(WIDTHS, layer)
        w_ptr = pick(weights, layer)
        following = ()
        for j in tl.static_range(BLOCKS):
            features = j * BLOCK_N + tl.arange(0, BLOCK_N)
            z = product_block(h, w_ptr, features, n, k, DTYPE, PRECISION, BLOCK_M, BLOCK_N, BLOCK_N)
            y = hidden_block(
                z, pick(biases, layer), pick(HAS_BIAS, layer), pick(slopes, layer), pick(STRIDE_SLOPE, layer),
                slope, saved_ptr, tl.multiple_of(pick(OFFSETS, layer), 16), rows, features, M, n, TOTAL,
                RAGGED, ACT, SAVE, SAVE_Z, DTYPE,
            )  # fmt: skip
            following = following + (y,)  # type: ignore[assignment]
        h = following
    return h


@triton.jit(do_not_specialize=["M"])
def mlp_forward_kernel(
    x_ptr, stride_xm, stride_xk,  # X (M, WIDTHS[0])
    weights,  # of each layer, (N, K) contiguous
    biases,  # (N,) contiguous, or anything where there is none
    slopes, slope,  # of the hidden layers: PReLU's, or the negative slope of all
    out_slope,
    saved_ptr,  # (M, OFFSETS[-1]), if SAVE
    y_ptr, z_ptr,  # (M, WIDTHS[-1]) contiguous; Z if KEEP_Z
    M,
    WIDTHS: tl.constexpr,  # of the input and of every layer
    OFFSETS: tl.constexpr,  # of each hidden layer's columns in saved_ptr, and their total
    HAS_BIAS: tl.constexpr,
    STRIDE_SLOPE: tl.constexpr,  # of each hidden layer's slopes
    ACT: tl.constexpr,
    OUT_ACT: tl.constexpr,
    RAGGED: tl.constexpr,  # BLOCK_N does not divide every hidden width
    SAVE: tl.constexpr,
    SAVE_Z: tl.constexpr,
    KEEP_Z: tl.constexpr,
    DTYPE: tl.constexpr,
    PRECISION: tl.constexpr,
   
    BLOCKS: tl.constexpr,  # of BLOCK_N features, in the widest hidden layer
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    h = hidden_layers(
        x_ptr, stride_xm, stride_xk, weights, biases, slopes, slope, saved_ptr, rows, M,
        WIDTHS, OFFSETS, HAS_BIAS, STRIDE_SLOPE, RAGGED, ACT, SAVE, SAVE_Z, DTYPE, PRECISION,
        BLOCKS, BLOCK_M, BLOCK_N, BLOCK_K,
    )  # fmt: skip
    LAST: tl.constexpr = len(WIDTHS) - 2
    K: tl.constexpr = WIDTHS[LAST]
    N: tl.constexpr = WIDTHS[LAST + 1]
    for start in range(0, N, BLOCK_OUT):
        features = start + tl.arange(0, BLOCK_OUT)
        z = product_block(h, weights[LAST], features, N, K, DTYPE, PRECISION, BLOCK_M, BLOCK_OUT, BLOCK_N)
        z = add_bias(z, biases[LAST], features, N, HAS_BIAS[LAST])
        inside = (rows[:, None] < M) & (features[None, :] < N)
        offsets = rows[:, None].to(tl.int64) * N + features[None, :]
        if KEEP_Z:
            store(z_ptr + offsets, z, inside)
        store(y_ptr + offsets, activate(z, out_slope, OUT_ACT), inside)


def saved_offsets(hidden: Sequence[int]) -> tuple[int, ...]:
    """Where each hidden layer's columns start in the saved buffer, and how many there are in all."""
    return tuple(itertools.accumulate((cdiv(n, ALIGNMENT) * ALIGNMENT for n in hidden), initial=0))


class Net(NamedTuple):
    """A network as its kernels take it: every tensor contiguous, every hidden layer with the same f."""

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

    def tile(self, suffix: str = "") -> Tile:
        """The tile for the widest hidden layer, cut where the widths are smaller."""
        kind = configs.precision_class(self.dtype, self.precision)
        widest = max(self.widths[1:-1])
        family = ("mlp_wide" if widest > 128 else "mlp") + suffix
        tile = configs.lookup(family, arch_of(self.weights[0]), kind, widest, widest)
        return replace(tile, BLOCK_N=block(widest, tile.BLOCK_N), BLOCK_K=block(self.widths[0], tile.BLOCK_K))

    def arguments(self) -> tuple[Any, ...]:
        """Weights, biases, slopes and the slope, in the kernels' order."""
        biases = tuple(w if b is None else b for w, b in zip(self.weights, self.biases))
        slopes = tuple(w if s is None else s for w, s in zip(self.weights, self.slope_weights))
        return tuple(self.weights), biases, slopes, self.slope

    def constants(self) -> dict[str, Any]:
        """What the kernels are compiled for."""
        return {
            "WIDTHS": self.widths,
            "OFFSETS": self.offsets,
            "HAS_BIAS": tuple(int(b is not None) for b in self.biases),
            "STRIDE_SLOPE": tuple(map(slope_stride, self.slope_weights)),
            "ACT": self.act,
            "OUT_ACT": self.out_act,
            "SAVE_Z": self.saves_z,
            "DTYPE": TL_DTYPE[self.dtype],
            "PRECISION": self.precision,
        }

    def blocks(self, tile: Tile) -> dict[str, Any]:
        """The tile of the forward or of the chain of gradients, as keyword arguments of a launch."""
        return {
            "RAGGED": any(n % tile.BLOCK_N for n in self.widths[1:-1]),
            "BLOCKS": cdiv(max(self.widths[1:-1]), tile.BLOCK_N),
            "BLOCK_M": tile.BLOCK_M,
            "BLOCK_N": tile.BLOCK_N,
            "BLOCK_K": tile.BLOCK_K,
            "BLOCK_OUT": block(self.widths[-1], tile.BLOCK_N),
            "num_warps": tile.num_warps,
            "num_stages": tile.num_stages,
        }


def block(size: int, most: int) -> int:
    """A block for ``size`` features: a power of two, which tensor cores take from 16 on."""
    return min(max(next_power_of_2(size), 16), most)


def mlp_forward(
    x: Tensor, net: Net, *, save: bool, keep_z: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Y (M, N) of the network; with ``save`` the hidden layers' matrices, with ``keep_z`` the output's Z.

    x (M, K) of any strides, M not 0; at least two layers, hidden widths of at most `MAX_WIDTH`. One launch.
    """
    m, n = len(x), net.widths[-1]
    y = torch.empty((m, n), device=x.device, dtype=net.dtype)
    z = torch.empty_like(y) if keep_z else None
    saved = torch.empty((m, net.offsets[-1]), device=x.device, dtype=net.dtype) if save else None
    tile = net.tile()
    launch(
        mlp_forward_kernel,
        (cdiv(m, tile.BLOCK_M),),
        x, x.stride(0), x.stride(1),
        *net.arguments(), net.out_slope,
        saved, y, z,
        m,
        **net.constants(),
        SAVE=save,
        KEEP_Z=keep_z,
        **net.blocks(tile),
    )  # fmt: skip
    return y, saved, z
