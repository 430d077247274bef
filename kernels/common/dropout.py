"""Dropout as part of a linear layer: Y = f(Z) ⊙ keep / (1 - p), the mask drawn wherever it is needed.

Whether element (row, col) of a layer's output is kept is a function of the seed, the layer's number
(``site``), the row and the column, and of nothing else: not of the tile, the architecture or how the
batch is split. So no mask is stored; the backward draws the same one again, transposed tiles included.

Philox-4x32-10 turns the counter (col / 4, row mod 2³², row / 2³², site) into four numbers, one each for
four neighbouring features. Its ten rounds are about a hundred integer operations (two wide products, two
low ones, four xors and two additions per round), so a number for each element would cost as much as 25
features of a product do; shared by four it costs a quarter of that.

Where f's output shows what was dropped, the backward draws nothing: ReLU and sigmoid have f' = 0 where
the stored output is 0, and a kept sigmoid is 0 only where its f' is.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastmlp.kernels.common.arguments import Drop, aligned, multiple
from fastmlp.kernels.common.device import product
from fastmlp.kernels.launch import cdiv, launch

#: A dropout as the launchers take it: its probability, a seed (1,) int64 on the device, the layer's number.
Dropout = tuple[float, Tensor, int]


@triton.jit
def keep_mask(seed_ptr, site, p, rows, first_col, BLOCK_N: tl.constexpr):
    """Which of the elements (rows, first_col ...) are kept; ``first_col`` and BLOCK_N are multiples of 4."""
    quads = first_col // 4 + tl.arange(0, BLOCK_N // 4)
    wide = rows.to(tl.int64)
    low = (wide & 0xFFFFFFFF).to(tl.uint32)
    high = (wide >> 32).to(tl.uint32)
    r0, r1, r2, r3 = tl.philox(
        tl.load(seed_ptr),
        quads.to(tl.uint32)[None, :],
        low[:, None],
        high[:, None],
        tl.cast(site, tl.uint32),
    )
    # The last two dimensions of the pairs are read as one number, 0 to 3.
    pairs = tl.join(
        tl.join(_keep(r0, p), _keep(r2, p)),
        tl.join(_keep(r1, p), _keep(r3, p)),
    )
    return tl.reshape(pairs, (rows.shape[0], BLOCK_N)) != 0


@triton.jit
def _keep(r, p):
    """1 with probability 1 - p: a uniform number in [0, 1) of 24 bits is p or more."""
    uniform = (r >> 8).to(tl.int32).to(tl.float32) * 5.9604644775390625e-08
    return (uniform >= p).to(tl.int8)


@triton.jit
def drop(y, dropout, site, rows, first_col, BLOCK_N: tl.constexpr):
    """y ⊙ mask / (1 - p). A product, as torch's: infinity and NaN become NaN where they are dropped."""
    mask = keep_mask(dropout.seed, site, dropout.p, rows, first_col, BLOCK_N)
    return y * tl.where(mask, dropout.keep, 0.0)


@triton.constexpr_function
def draws(act: str) -> bool:
    """Whether the backward of a dropout after ``act`` must draw the mask again."""
    return act not in ("relu", "sigmoid")


@triton.jit
def undrop(
    grad, dropout, site, rows, first_col,
    ACT: tl.constexpr, TRANSPOSED: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """The gradient of f's output from that of the layer's, float32.

    ``rows`` and the BLOCK_N columns from ``first_col`` are the elements'; with TRANSPOSED the tiles are
    (columns, rows).
    """
    if not draws(ACT):  # where it was dropped the output is 0, and so is f'
        return product(grad.to(tl.float32), dropout.keep)
    else:
        mask = keep_mask(dropout.seed, site, dropout.p, rows, first_col, BLOCK_N)
        if TRANSPOSED:
            mask = tl.trans(mask)
        return product(grad.to(tl.float32), tl.where(mask, dropout.keep, 0.0))


@triton.jit
def undropped(saved, scale, ACT: tl.constexpr):
    """What f' is computed from, if that is f's output: what is stored is the layer's, after the dropout."""
    if ACT == "sigmoid" or ACT == "tanh":  # of the others' output only the sign is used
        return saved.to(tl.float32) / scale
    else:
        return saved


@triton.jit(do_not_specialize=["site", "M"])
def dropout_mask_kernel(
    seed_ptr, site, p,
    out_ptr,  # (M, N) int8, contiguous
    M,
    N,  # a Multiple
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):  # fmt: skip
    N = aligned(N)
    num_n = tl.cdiv(N, BLOCK_N)
    rows = tl.program_id(0) // num_n * BLOCK_M + tl.arange(0, BLOCK_M)
    first_col = tl.program_id(0) % num_n * BLOCK_N
    cols = first_col + tl.arange(0, BLOCK_N)
    keep = keep_mask(seed_ptr, site, p, rows, first_col, BLOCK_N)
    offsets = rows[:, None].to(tl.int64) * N + cols[None, :]
    tl.store(out_ptr + offsets, keep.to(tl.int8), mask=(rows[:, None] < M) & (cols[None, :] < N))


def dropout_mask(dropout: Dropout, m: int, n: int) -> Tensor:
    """The mask (M, N) bool that a layer of N features draws for M rows. For a double backward, and tests."""
    p, seed, site = dropout
    out = torch.empty((m, n), device=seed.device, dtype=torch.int8)
    launch(
        dropout_mask_kernel,
        (cdiv(m, _BLOCK_M) * cdiv(n, _BLOCK_N),),
        seed, site, p, out, m, multiple(n),
        BLOCK_M=_BLOCK_M,
        BLOCK_N=_BLOCK_N,
    )  # fmt: skip
    return out.view(torch.bool)


_BLOCK_M, _BLOCK_N = 16, 128


def arguments(dropout: Dropout | None) -> tuple[Drop | None, int]:
    """A dropout as two arguments of a kernel: all but its layer's number, and that number."""
    if dropout is None:
        return None, 0
    p, seed, site = dropout
    return Drop(seed, p, 1 / (1 - p)), site
