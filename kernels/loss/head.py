"""The last layer and the loss in one kernel: logits, loss, dlogits and the hidden layer's dZ.

For up to 256 classes a program holds the logits of its rows on the chip: X W_Lᵀ + b goes straight
into the softmax, and dlogits straight into dlogits W_L times the hidden activation's derivative.
Or into the squared error: the "logits" are then the predictions, the targets as many numbers a row.
The logits reach memory only when asked for. What it writes is the gradient of the *sum* of the rows'
losses: the mean's denominator and the upstream gradient are known only after the last row, so the
kernels that make the parameters' gradients multiply by them (`scale` in `linear_backward`). Not
dividing by the batch first also keeps fp16 gradients away from underflow.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastmlp.kernels.common.activations import undo
from fastmlp.kernels.common.arguments import (
    TL_DTYPE,
    Blocks,
    Matrix,
    Source,
    Undo,
    activation,
    at,
    load_vector,
    matrix,
    rows_of,
    transposed,
    vector,
)
from fastmlp.kernels.common.device import cast, dot, store, wait_for_previous
from fastmlp.kernels.launch import cdiv, launch, next_power_of_2
from fastmlp.kernels.loss.cross_entropy import finish, partial_sums
from fastmlp.kernels.loss.mse import squared_error_tile
from fastmlp.kernels.loss.softmax import Criterion, Sums, cross_entropy_tile
from fastmlp.kernels.tiles import configs
from fastmlp.kernels.tiles.configs import Tile

#: More classes, or outputs, than this do not fit on the chip beside the rest.
MAX_CLASSES = 256


class Results(NamedTuple):
    """Where the head writes; None if not asked for."""

    sums: Sums
    logits: Matrix | None  # (M, C)
    dlogits: Matrix | None  # (M, C)
    dz: Matrix | None  # (M, K)


@triton.jit
def head_tile(
    pid, num_programs, h, w, bias, before, criterion, out, M, C, K, DTYPE: tl.constexpr, TILE: tl.constexpr
):
    """The head of BLOCK_M rows. What it leaves of the loss: see `leave_sums`."""
    rows = pid * TILE.BLOCK_M + tl.arange(0, TILE.BLOCK_M)
    cols = tl.arange(0, TILE.BLOCK_N)
    k = tl.arange(0, TILE.BLOCK_K)
    ok = rows < M
    row_ok = ok[:, None]
    col_ok = cols[None, :] < C

    hs = at(h, rows, k)
    ws = at(transposed(w), k, cols)
    x = tl.zeros((TILE.BLOCK_M, TILE.BLOCK_N), tl.float32)
    for start in range(0, K, TILE.BLOCK_K):
        h_tile = tl.load(hs, mask=row_ok & (k[None, :] < K - start), other=0.0)
        w_tile = tl.load(ws, mask=col_ok & (k[:, None] < K - start), other=0.0)
        x = dot(h_tile, w_tile, x, DTYPE, TILE.PRECISION)
        hs += TILE.BLOCK_K * h.col
        ws += TILE.BLOCK_K * w.col
    if bias is not None:
        x += load_vector(bias, cols, C)[None, :]
    inside = row_ok & col_ok
    if out.logits is not None:
        store(at(out.logits, rows, cols), x, inside)

    target = criterion.target
    targets = target.matrix.ptr + rows_of(target, rows, ok).to(tl.int64) * target.matrix.row
    if criterion.name == "mse":
        count = tl.minimum(M - pid * TILE.BLOCK_M, TILE.BLOCK_M)
        d = squared_error_tile(x, targets, ok, count, cols, C, criterion, pid, num_programs, out.sums)
    else:
        d = cross_entropy_tile(x, targets, ok, cols, C, criterion, pid, num_programs, out.sums)
    if out.dlogits is not None:
        d = cast(tl.where(inside, d, 0.0), DTYPE)
        store(at(out.dlogits, rows, cols), d, inside)
    if out.dz is not None:
        ws = at(w, cols, k)
        for start in range(0, K, TILE.BLOCK_K):
            features = start + k
            k_ok = features[None, :] < K
            w_tile = tl.load(ws, mask=(cols[:, None] < C) & k_ok, other=0.0)
            dz = tl.zeros((TILE.BLOCK_M, TILE.BLOCK_K), tl.float32)
            dz = dot(d, w_tile, dz, DTYPE, TILE.PRECISION)
            if before is not None:
                y = tl.load(at(before.saved, rows, features), mask=row_ok & k_ok, other=0.0)
                dz = undo(dz, y.to(tl.float32), before.act.slope, before.act.name)
            store(at(out.dz, rows, features), dz, row_ok & k_ok)
            ws += TILE.BLOCK_K * w.col


@triton.jit(do_not_specialize=["M"])
def head_kernel(
    h, w, bias,  # hidden outputs (M, K), W_L (C, K), b_L (C,)
    before,  # the hidden activation, whose derivative multiplies dZ: an `Undo` without a dropout
    criterion,  # of class indices (M, 1), or the squared error's targets (M, C)
    out,
    M, C, K,
    PDL: tl.constexpr,
    DTYPE: tl.constexpr,
    TILE: tl.constexpr,
):  # fmt: skip
    wait_for_previous(PDL)
    pid, programs = tl.program_id(0), tl.num_programs(0)
    head_tile(pid, programs, h, w, bias, before, criterion, out, M, C, K, DTYPE, TILE)


def targets(target: Tensor, index: Tensor | None = None) -> Source:
    """Class indices (M,), or targets (M, C), as the head reads them; with ``index`` those rows of them."""
    stride, *columns = target.stride()
    return Source(Matrix(target, stride, columns[0] if columns else None), index)


def hidden(act: str, slope: float, saved: Tensor | None) -> Undo | None:
    """The activation of the layer before the head, as the head undoes it."""
    return None if act == "none" else Undo(activation(act, slope), matrix(saved), None)


def head(
    h: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    criterion: Criterion,
    before: Undo | None,
    wanted: tuple[bool, bool, bool],
    *,
    dtype: torch.dtype,
    loss_dtype: torch.dtype,
    precision: str,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """The loss of h weightᵀ + bias, with its gradients.

    Returns the loss, what it was divided by, and what is ``wanted`` of logits (M, C), dlogits (M, C) and dZ
    (M, K), else None; dZ comes with dlogits only.

    h (M, K), weight (C, K) with C at most `MAX_CLASSES`, bias (C,); class indices (M,) or targets (M, C); any
    strides; M, C and K are not 0; the reduction is "mean" or "sum". One launch, and one to sum the programs'
    losses where there are several.
    """
    (m, k), c = h.shape, weight.shape[0]
    tile = configs.for_weight("head", weight, dtype, precision)
    programs = cdiv(m, tile.BLOCK_M)
    logits, dlogits, dz = (
        torch.empty((m, n), device=h.device, dtype=dtype) if each else None
        for each, n in zip(wanted, (c, c, k))
    )
    loss = torch.empty((), device=h.device, dtype=loss_dtype)
    denominator = torch.empty((), device=h.device, dtype=torch.float32)
    sums = Sums(partial_sums(programs, denominator), loss, denominator)
    out = Results(sums, matrix(logits), matrix(dlogits), matrix(dz))
    head_step(h, weight, bias, criterion, before, out, dtype=dtype, precision=precision)
    finish(sums, programs, criterion.reduction.value)
    return loss, denominator, logits, dlogits, dz


def head_step(
    h: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    criterion: Criterion,
    before: Undo | None,
    out: Results,
    *,
    dtype: torch.dtype,
    precision: str,
    pdl: bool = False,
) -> None:
    """One launch; its sums are still to become the loss, by `head` or by a training step's update."""
    (m, k), c = h.shape, weight.shape[0]
    tile = configs.for_weight("head", weight, dtype, precision)
    launch(
        head_kernel,
        (cdiv(m, tile.BLOCK_M),),
        matrix(h), matrix(weight), vector(bias), before, criterion, out, m, c, k,
        PDL=pdl,
        DTYPE=TL_DTYPE[dtype],
        TILE=blocks(tile, c, precision),
        **tile.options,
    )  # fmt: skip


def blocks(tile: Tile, classes: int, precision: str) -> Blocks:
    """The head's tile: all classes, and a mask along K."""
    return Blocks(tile.BLOCK_M, max(next_power_of_2(classes), 16), tile.BLOCK_K, 1, False, precision)
