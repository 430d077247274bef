"""Softmax cross-entropy over any number of classes: one pass forward, one backward.

The forward keeps three floats a row (max, log-sum, coefficient of p); the backward recomputes the
softmax from the logits, which are never written. A program takes BLOCK_M rows at a time, and walks
over the classes online where they do not fit in BLOCK_C. Blocks depend on the classes alone.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastmlp.kernels.common.arguments import Multiple, aligned, multiple
from fastmlp.kernels.common.device import store
from fastmlp.kernels.launch import cdiv, launch, launch_if, next_power_of_2
from fastmlp.kernels.loss.softmax import (
    Sums,
    class_weights,
    criterion,
    finish_loss,
    finite_max,
    index_coefficients,
    leave_sums,
    load_targets,
    online_max_and_sum,
    probability_coefficients,
    row_loss,
)

# A loss over up to so many elements is summed by one program, which saves the launch of `finish_loss_kernel`.
_ONE_PROGRAM = 32768
_MAX_BLOCK_C = 4096


class Rows(NamedTuple):
    """The rows of logits (N, C, D): N * D of them, along C. For (N, D), one number per row, c is None."""

    ptr: Any
    n: Multiple
    c: Multiple | None
    d: Multiple


@triton.jit
def _pointers(x, rows, D):
    """To row r of x, which is n = r // D, d = r % D."""
    return x.ptr + (rows // D).to(tl.int64) * aligned(x.n) + (rows % D).to(tl.int64) * aligned(x.d)


@triton.jit
def _of_rows(stats_ptr, criterion):
    """The rows' statistics, which come after what their loss was divided by."""
    return stats_ptr if criterion.reduction == "none" else stats_ptr + 1


@triton.jit
def _coefficients(target, t_row, cols, inside, C, criterion):
    """a_c of a tile, for class indices or for probabilities."""
    if criterion.target.c is None:
        return index_coefficients(target, cols, C, criterion.weight, criterion.smoothing)
    else:
        t_tile = t_row[:, None] + cols[None, :].to(tl.int64) * aligned(criterion.target.c)
        t = tl.load(t_tile, mask=inside, other=0.0).to(tl.float32)
        return probability_coefficients(t, cols, C, criterion.weight, criterion.smoothing)


@triton.jit(do_not_specialize=["num_rows", "rows_per_program"])
def cross_entropy_forward_kernel(
    x,  # logits (N, C, D)
    criterion,  # of class indices (N, D), or probabilities (N, C, D)
    stats_ptr,  # see `forward`
    sums,  # its loss: one number, or of reduction "none" (num_rows,)
    num_rows, rows_per_program,
    C, D,  # each a Multiple
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):  # fmt: skip
    num_rows = num_rows // D.factor * D.factor  # it is N * D
    C = aligned(C)
    D = aligned(D)
    pid = tl.program_id(0)
    begin = pid * tl.cdiv(rows_per_program, BLOCK_M) * BLOCK_M
    end = tl.minimum(begin + rows_per_program, num_rows)
    stats_ptr = _of_rows(stats_ptr, criterion)
    loss_sum = tl.zeros((BLOCK_M,), tl.float32)
    weight_sum = tl.zeros((BLOCK_M,), tl.float32)
    for first in range(begin, end, BLOCK_M):
        rows = first + tl.arange(0, BLOCK_M)
        ok = rows < num_rows
        x_row = _pointers(x, rows, D)
        t_row = _pointers(criterion.target, rows, D)
        target = None
        ignored = None
        invalid = None
        weight = tl.zeros((BLOCK_M,), tl.float32) + 1.0
        if criterion.target.c is None:
            target, ignored, invalid = load_targets(t_row, ok, C, criterion.ignore_index)
            known = ok & (ignored == 0) & (invalid == 0)
            weight = tl.where(known, class_weights(criterion.weight, target, known), 0.0)
            if criterion.smoothing is None:  # only the target's logit counts; 0 * inf of the others must not
                x_target = tl.load(x_row + target * aligned(x.c), mask=known, other=0.0).to(tl.float32)

        m = tl.full((BLOCK_M,), float("-inf"), tl.float32)
        s = tl.zeros((BLOCK_M,), tl.float32)
        total = tl.zeros((BLOCK_M,), tl.float32)
        weighted = tl.zeros((BLOCK_M,), tl.float32)
        for start in range(0, C, BLOCK_C):
            cols = start + tl.arange(0, BLOCK_C)
            inside = ok[:, None] & (cols[None, :] < C)
            x_tile = x_row[:, None] + cols[None, :].to(tl.int64) * aligned(x.c)
            tile = tl.load(x_tile, mask=inside, other=float("-inf"))
            tile = tile.to(tl.float32)
            before = finite_max(m)
            m, s = online_max_and_sum(tile, m, s)
            if criterion.target.c is not None or criterion.smoothing is not None:
                a = _coefficients(target, t_row, cols, inside, C, criterion)
                now = finite_max(m)
                weighted += total * (before - now)
                weighted += tl.sum(tl.where(inside, a * (tile - now[:, None]), 0.0), 1)
                total += tl.sum(a, 1)

        if criterion.target.c is None and criterion.smoothing is None:
            total = weight
            weighted = weight * (x_target - m)
        log_sum = tl.log(s)
        loss, coefficient = row_loss(total, log_sum, weighted, m, criterion.z_loss, ignored, invalid)
        tl.store(stats_ptr + rows, m, mask=ok)
        tl.store(stats_ptr + num_rows.to(tl.int64) + rows, log_sum, mask=ok)
        tl.store(stats_ptr + 2 * num_rows.to(tl.int64) + rows, coefficient, mask=ok)
        if criterion.reduction == "none":
            store(sums.loss + rows, loss, ok)
        else:
            loss_sum += tl.where(ok, loss, 0.0)
            weight_sum += tl.where(ok, weight, 0.0)

    if criterion.reduction != "none":
        loss_total = tl.sum(loss_sum, 0)
        weight_total = tl.sum(weight_sum, 0)
        leave_sums(loss_total, weight_total, 0.0, pid, tl.num_programs(0), sums, criterion.reduction)


@triton.jit(do_not_specialize=["count"])
def finish_loss_kernel(sums, count, REDUCTION: tl.constexpr, BLOCK: tl.constexpr):
    """Sum the programs' partial sums, always in the same order."""
    loss = tl.zeros((BLOCK,), tl.float32)
    weight = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, count, BLOCK):
        i = first + tl.arange(0, BLOCK)
        loss += tl.load(sums.partial + i, mask=i < count, other=0.0)
        weight += tl.load(sums.partial + count + i, mask=i < count, other=0.0)
    finish_loss(sums, tl.sum(loss, 0), tl.sum(weight, 0), REDUCTION)


@triton.jit(do_not_specialize=["num_rows"])
def cross_entropy_backward_kernel(
    x, criterion, stats_ptr,  # as in the forward
    grad,  # upstream: (N, D), or one number with strides of 0
    dx,  # (N, C, D)
    num_rows,
    C, D, first, width,  # each a Multiple; the logits are those of classes first .. first + width
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):  # fmt: skip
    num_rows = num_rows // D.factor * D.factor
    C = aligned(C)
    D = aligned(D)
    width = aligned(width)
    blocks = tl.cdiv(width, BLOCK_C)
    rows = tl.program_id(0) // blocks * BLOCK_M + tl.arange(0, BLOCK_M)
    local = tl.program_id(0) % blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    cols = aligned(first) + local
    ok = rows < num_rows
    inside = ok[:, None] & (local[None, :] < width)
    col_offsets = local[None, :].to(tl.int64)
    upstream = tl.load(_pointers(grad, rows, D), mask=ok, other=0.0).to(tl.float32)
    if criterion.reduction != "none":
        upstream = upstream / tl.load(stats_ptr)
    stats_ptr = _of_rows(stats_ptr, criterion)
    m = tl.load(stats_ptr + rows, mask=ok, other=0.0)
    log_sum = tl.load(stats_ptr + num_rows.to(tl.int64) + rows, mask=ok, other=0.0)
    coefficient = tl.load(stats_ptr + 2 * num_rows.to(tl.int64) + rows, mask=ok, other=0.0)

    t_row = _pointers(criterion.target, rows, D)
    target = None
    if criterion.target.c is None:
        target, ignored, _ = load_targets(t_row, ok, C, criterion.ignore_index)
    a = _coefficients(target, t_row, cols, inside, C, criterion)

    x_tile = _pointers(x, rows, D)[:, None] + col_offsets * aligned(x.c)
    logits = tl.load(x_tile, mask=inside, other=0.0).to(tl.float32)
    p = tl.exp((logits - m[:, None]) - log_sum[:, None])
    gradient = upstream[:, None] * (p * coefficient[:, None] - a)
    if criterion.target.c is None:
        # Selected, not multiplied by upstream, which is inf where every row is ignored. As torch's, the
        # gradient of an ignored row is 0 unless its softmax is NaN.
        gradient = tl.where(ignored[:, None], p * 0.0, gradient)
    store(_pointers(dx, rows, D)[:, None] + col_offsets * aligned(dx.c), gradient, inside)


def forward(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    *,
    reduction: str,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    loss_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """The loss, (N, D) for reduction "none", else a scalar; and what the backward needs of it, float32.

    That is each row's max, log-sum and coefficient of p, (3, rows); for a reduced loss flat, after the number
    that it was divided by. The loss is in the logits' dtype unless another is asked for.

    logits (N, C, D), target (N, D) class indices or (N, C, D) probabilities, weight (C,); any
    strides; N, C and D are not 0. One launch, two for a reduction over many elements.
    """
    n, c, d = logits.shape
    rows, device, each = n * d, logits.device, reduction == "none"
    # A coefficient for every element besides the logit, and the registers hold an eighth of the rows.
    block_c, block_m, warps = _blocks(c, 512 if target.dim() == 3 or label_smoothing > 0 else 4096)
    programs = cdiv(rows, block_m) if each or rows * max(c, block_c) > _ONE_PROGRAM else 1
    loss = torch.empty((n, d) if each else (), device=device, dtype=loss_dtype or logits.dtype)
    stats = torch.empty((3, rows) if each else 3 * rows + 1, device=device, dtype=torch.float32)
    sums = Sums(partial_sums(1 if each else programs, stats), loss, stats)
    numbers = ignore_index, label_smoothing, z_loss
    launch(
        cross_entropy_forward_kernel,
        (programs,),
        _rows(logits), criterion("cross_entropy", reduction, _rows(target), weight, *numbers), stats, sums,
        rows, rows if programs == 1 else block_m, multiple(c), multiple(d),
        BLOCK_M=block_m,
        BLOCK_C=block_c,
        num_warps=warps,
    )  # fmt: skip
    if not each:
        finish(sums, programs, reduction)
    return loss, stats


def partial_sums(programs: int, other: Tensor) -> Tensor:
    """Memory for the sums of so many programs; one alone leaves none, so any ``other`` float32 will do."""
    if programs == 1:
        return other
    return torch.empty(2 * programs, device=other.device, dtype=torch.float32)


def finish(sums: Sums, programs: int, reduction: str) -> None:
    """Compute the loss and its denominator from the programs' sums; a single one has done that itself."""
    launch_if(programs > 1, finish_loss_kernel, (1,), sums, programs, REDUCTION=reduction, BLOCK=1024)


def backward(
    grad: Tensor,
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    stats: Tensor,
    out: Tensor,
    *,
    reduction: str,
    ignore_index: int,
    label_smoothing: float,
    first: int = 0,
    classes: int | None = None,
) -> None:
    """Write the logits' gradient to ``out`` (N, C, D), which may be the logits themselves. One launch.

    grad (N, D) for reduction "none", else a scalar; ``stats`` as `forward` gave them. The logits may be
    those of only some of the ``classes``, from ``first`` on; target, weight and stats are of all.
    """
    n, c, d = logits.shape
    # With smoothing a row has more to keep: 2048 elements of few classes spilled two registers on sm_120.
    block_c, block_m, warps = _blocks(c, 1024 if label_smoothing > 0 and c <= 64 else 2048)
    launch(
        cross_entropy_backward_kernel,
        (cdiv(n * d, block_m) * cdiv(c, block_c),),
        _rows(logits),
        criterion("cross_entropy", reduction, _rows(target), weight, ignore_index, label_smoothing),
        stats,
        _rows(grad) if reduction == "none" else Rows(grad, multiple(0), None, multiple(0)),
        _rows(out), n * d, multiple(classes or c), multiple(d), multiple(first), multiple(c),
        BLOCK_M=block_m,
        BLOCK_C=block_c,
        num_warps=warps,
    )  # fmt: skip


@cache
def _blocks(classes: int, elements: int) -> tuple[int, int, int]:
    """BLOCK_C, BLOCK_M and warps for a tile of about ``elements``: from the classes alone."""
    block_c = min(next_power_of_2(classes), max(4 * elements, 2048), _MAX_BLOCK_C)
    block_m = max(elements // block_c, 1)
    return block_c, block_m, 8 if block_c >= 2048 or block_c * block_m >= 4096 else 4


def _rows(tensor: Tensor) -> Rows:
    """(N, C, D), or (N, D), as a kernel's argument."""
    n, *c, d = map(multiple, tensor.stride())
    return Rows(tensor, n, c[0] if c else None, d)
