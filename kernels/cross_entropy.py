"""Softmax cross-entropy over any number of classes: one pass forward, one backward.

The forward keeps three floats a row (max, log-sum, coefficient of p); the backward recomputes the
softmax from the logits, which are never written. A program takes BLOCK_M rows at a time, and walks
over the classes online where they do not fit in BLOCK_C. Blocks depend on the classes alone.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastmlp.kernels.device import store
from fastmlp.kernels.launch import cdiv, launch, launch_if, next_power_of_2
from fastmlp.kernels.softmax import (
    finish_loss,
    finite_max,
    index_coefficients,
    leave_sums,
    load_class_weights,
    load_targets,
    online_max_and_sum,
    probability_coefficients,
    row_loss,
)

# A loss over so few elements is summed by one program, which saves the launch of `finish_loss_kernel`.
_ONE_PROGRAM = 32768
_MAX_BLOCK_C = 4096


@triton.jit
def _row_offsets(rows, D, stride_n, stride_d):
    """Row r of logits (N, C, D) is n = r // D, d = r % D."""
    return (rows // D).to(tl.int64) * stride_n + (rows % D).to(tl.int64) * stride_d


@triton.jit(do_not_specialize=["num_rows", "rows_per_program"])
def cross_entropy_forward_kernel(
    x_ptr, stride_xn, stride_xc, stride_xd,  # logits (N, C, D)
    t_ptr, stride_tn, stride_tc, stride_td,  # class indices (N, D), or probabilities (N, C, D)
    w_ptr, stride_w,  # class weights (C,)
    loss_ptr,  # (num_rows,), or one number if REDUCE
    stats_ptr,  # (3, num_rows): max, log-sum, coefficient of p
    partial_ptr,  # (2, programs): sums of losses and of target weights
    denominator_ptr,
    num_rows, rows_per_program, C, D,
    ignore_index, smoothing, z_loss,
    PROBABILITIES: tl.constexpr,
    SMOOTH: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    REDUCE: tl.constexpr,
    MEAN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    begin = pid * rows_per_program
    end = tl.minimum(begin + rows_per_program, num_rows)
    loss_sum = tl.zeros((BLOCK_M,), tl.float32)
    weight_sum = tl.zeros((BLOCK_M,), tl.float32)
    for first in range(begin, end, BLOCK_M):
        rows = first + tl.arange(0, BLOCK_M)
        ok = rows < end
        x_row = x_ptr + _row_offsets(rows, D, stride_xn, stride_xd)
        t_row = t_ptr + _row_offsets(rows, D, stride_tn, stride_td)
        ignored = None
        invalid = None
        if not PROBABILITIES:
            target, ignored, invalid = load_targets(t_row, ok, C, ignore_index)

        m = tl.full((BLOCK_M,), float("-inf"), tl.float32)
        s = tl.zeros((BLOCK_M,), tl.float32)
        total = tl.zeros((BLOCK_M,), tl.float32)
        weighted = tl.zeros((BLOCK_M,), tl.float32)
        for start in range(0, C, BLOCK_C):
            cols = start + tl.arange(0, BLOCK_C)
            inside = ok[:, None] & (cols[None, :] < C)
            col_offsets = cols[None, :].to(tl.int64)
            x = tl.load(x_row[:, None] + col_offsets * stride_xc, mask=inside, other=float("-inf"))
            x = x.to(tl.float32)
            before = finite_max(m)
            m, s = online_max_and_sum(x, m, s)
            if PROBABILITIES or SMOOTH:
                if PROBABILITIES:
                    t = tl.load(t_row[:, None] + col_offsets * stride_tc, mask=inside, other=0.0)
                    a = probability_coefficients(
                        t.to(tl.float32), cols, C, w_ptr, stride_w, smoothing, HAS_WEIGHT
                    )
                else:
                    a = index_coefficients(target, cols, C, w_ptr, stride_w, smoothing, HAS_WEIGHT)
                now = finite_max(m)
                weighted += total * (before - now)
                weighted += tl.sum(tl.where(inside, a * (x - now[:, None]), 0.0), 1)
                total += tl.sum(a, 1)

        weight = tl.zeros((BLOCK_M,), tl.float32) + 1.0
        if not PROBABILITIES:
            known = ok & (ignored == 0) & (invalid == 0)
            weight = tl.where(known, load_class_weights(w_ptr, stride_w, target, known, HAS_WEIGHT), 0.0)
            if not SMOOTH:  # only the target's logit counts; 0 * inf of the others must not
                x_target = tl.load(x_row + target * stride_xc, mask=known, other=0.0).to(tl.float32)
                total = weight
                weighted = weight * (x_target - m)
        log_sum = tl.log(s)
        loss, coefficient = row_loss(total, log_sum, weighted, m, z_loss, ignored, invalid)
        tl.store(stats_ptr + rows, m, mask=ok)
        tl.store(stats_ptr + num_rows.to(tl.int64) + rows, log_sum, mask=ok)
        tl.store(stats_ptr + 2 * num_rows.to(tl.int64) + rows, coefficient, mask=ok)
        if REDUCE:
            loss_sum += tl.where(ok, loss, 0.0)
            weight_sum += tl.where(ok, weight, 0.0)
        else:
            store(loss_ptr + rows, loss, ok)

    if REDUCE:
        loss_total = tl.sum(loss_sum, 0)
        weight_total = tl.sum(weight_sum, 0)
        leave_sums(
            loss_total, weight_total, 0.0, pid, tl.num_programs(0),
            loss_ptr, partial_ptr, denominator_ptr, MEAN, False,
        )  # fmt: skip


@triton.jit(do_not_specialize=["count"])
def finish_loss_kernel(
    partial_ptr, count, loss_ptr, denominator_ptr, MEAN: tl.constexpr, BLOCK: tl.constexpr
):
    """Sum the programs' partial sums, always in the same order."""
    loss = tl.zeros((BLOCK,), tl.float32)
    weight = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, count, BLOCK):
        i = first + tl.arange(0, BLOCK)
        loss += tl.load(partial_ptr + i, mask=i < count, other=0.0)
        weight += tl.load(partial_ptr + count + i, mask=i < count, other=0.0)
    finish_loss(loss_ptr, denominator_ptr, tl.sum(loss, 0), tl.sum(weight, 0), MEAN)


@triton.jit(do_not_specialize=["num_rows"])
def cross_entropy_backward_kernel(
    x_ptr, stride_xn, stride_xc, stride_xd,
    t_ptr, stride_tn, stride_tc, stride_td,
    w_ptr, stride_w,
    stats_ptr,
    grad_ptr, stride_gn, stride_gd,  # upstream: (N, D), or one number with strides of 0
    denominator_ptr,
    dx_ptr, stride_dn, stride_dc, stride_dd,
    num_rows, C, D, first, width,  # the logits are those of classes first .. first + width
    ignore_index, smoothing,
    PROBABILITIES: tl.constexpr,
    REDUCE: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(width, BLOCK_C)
    rows = tl.program_id(0) // blocks * BLOCK_M + tl.arange(0, BLOCK_M)
    local = tl.program_id(0) % blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    cols = first + local
    ok = rows < num_rows
    inside = ok[:, None] & (local[None, :] < width)
    col_offsets = local[None, :].to(tl.int64)
    m = tl.load(stats_ptr + rows, mask=ok, other=0.0)
    log_sum = tl.load(stats_ptr + num_rows.to(tl.int64) + rows, mask=ok, other=0.0)
    coefficient = tl.load(stats_ptr + 2 * num_rows.to(tl.int64) + rows, mask=ok, other=0.0)
    upstream = tl.load(grad_ptr + _row_offsets(rows, D, stride_gn, stride_gd), mask=ok, other=0.0)
    upstream = upstream.to(tl.float32)
    if REDUCE:
        upstream = upstream / tl.load(denominator_ptr)

    t_row = t_ptr + _row_offsets(rows, D, stride_tn, stride_td)
    if PROBABILITIES:
        t = tl.load(t_row[:, None] + cols[None, :].to(tl.int64) * stride_tc, mask=inside, other=0.0)
        t = t.to(tl.float32)
        a = probability_coefficients(t, cols, C, w_ptr, stride_w, smoothing, HAS_WEIGHT)
    else:
        target, ignored, _ = load_targets(t_row, ok, C, ignore_index)
        a = index_coefficients(target, cols, C, w_ptr, stride_w, smoothing, HAS_WEIGHT)

    x_row = x_ptr + _row_offsets(rows, D, stride_xn, stride_xd)
    x = tl.load(x_row[:, None] + col_offsets * stride_xc, mask=inside, other=0.0).to(tl.float32)
    p = tl.exp((x - m[:, None]) - log_sum[:, None])
    dx = upstream[:, None] * (p * coefficient[:, None] - a)
    if not PROBABILITIES:
        # Selected, not multiplied by upstream, which is inf where every row is ignored. As torch's, the
        # gradient of an ignored row is 0 unless its softmax is NaN.
        dx = tl.where(ignored[:, None], p * 0.0, dx)
    dx_row = dx_ptr + _row_offsets(rows, D, stride_dn, stride_dd)
    store(dx_row[:, None] + col_offsets * stride_dc, dx, inside)


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
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss, (N, D) for reduction "none", else a scalar; and what the backward needs of it.

    That is each row's max, log-sum and coefficient of p, (3, rows) float32; and the number that a
    reduced loss was divided by, on the device. The loss is in the logits' dtype if no other is asked for.

    logits (N, C, D), target (N, D) class indices or (N, C, D) probabilities, weight (C,); any
    strides; N, C and D are not 0. One launch, two for a reduction over many elements.
    """
    n, c, d = logits.shape
    rows = n * d
    reduce = reduction != "none"
    probabilities = target.dim() == 3
    # A coefficient for every element besides the logit, and the registers hold an eighth of the rows.
    block_c, block_m, warps = _blocks(c, 512 if probabilities or label_smoothing > 0 else 4096)
    programs = 1 if reduce and rows * max(c, block_c) <= _ONE_PROGRAM else cdiv(rows, block_m)
    loss = torch.empty((n, d) if not reduce else (), device=logits.device, dtype=loss_dtype or logits.dtype)
    stats = torch.empty((3, rows), device=logits.device, dtype=torch.float32)
    sums = torch.empty(2 * programs + 1, device=logits.device, dtype=torch.float32)
    partial, denominator = sums[1:], sums[0]
    launch(
        cross_entropy_forward_kernel,
        (programs,),
        logits, *logits.stride(),
        target, *_target_strides(target),
        weight, 0 if weight is None else weight.stride(0),
        loss, stats, partial, denominator,
        rows, rows if programs == 1 else block_m, c, d,
        ignore_index, float(label_smoothing), float(z_loss),
        PROBABILITIES=probabilities,
        SMOOTH=label_smoothing > 0,
        HAS_WEIGHT=weight is not None,
        REDUCE=reduce,
        MEAN=reduction == "mean",
        BLOCK_M=block_m,
        BLOCK_C=block_c,
        num_warps=warps,
    )  # fmt: skip
    if reduce:
        finish(partial, programs, loss, denominator, reduction)
    return loss, stats, denominator


def finish(partial: Tensor, count: int, loss: Tensor, denominator: Tensor, reduction: str) -> None:
    """Reduce ``count`` partial sums of losses and weights to the loss and its denominator.

    A single program has done that itself.
    """
    mean = reduction == "mean"
    launch_if(count > 1, finish_loss_kernel, (1,), partial, count, loss, denominator, MEAN=mean, BLOCK=1024)


def backward(
    grad: Tensor,
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    stats: Tensor,
    denominator: Tensor | None,
    out: Tensor,
    *,
    reduction: str,
    ignore_index: int,
    label_smoothing: float,
    first: int = 0,
    classes: int | None = None,
) -> None:
    """Write the logits' gradient to ``out`` (N, C, D), which may be the logits themselves. One launch.

    grad (N, D) for reduction "none", which needs no denominator; else a scalar. The logits may be those
    of some ``classes`` alone, from ``first`` on; target, weight and stats are of all.
    """
    n, c, d = logits.shape
    reduce = reduction != "none"
    block_c, block_m, warps = _blocks(c, 2048)
    launch(
        cross_entropy_backward_kernel,
        (cdiv(n * d, block_m) * cdiv(c, block_c),),
        logits, *logits.stride(),
        target, *_target_strides(target),
        weight, 0 if weight is None else weight.stride(0),
        stats,
        grad, *((0, 0) if reduce else grad.stride()),
        denominator,
        out, *out.stride(),
        n * d, classes or c, d, first, c,
        ignore_index, float(label_smoothing),
        PROBABILITIES=target.dim() == 3,
        REDUCE=reduce,
        HAS_WEIGHT=weight is not None,
        BLOCK_M=block_m,
        BLOCK_C=block_c,
        num_warps=warps,
    )  # fmt: skip


def _blocks(classes: int, elements: int) -> tuple[int, int, int]:
    """BLOCK_C, BLOCK_M and warps for a tile of about ``elements``: from the classes alone."""
    block_c = min(next_power_of_2(classes), max(4 * elements, 2048), _MAX_BLOCK_C)
    block_m = max(elements // block_c, 1)
    return block_c, block_m, 8 if block_c >= 2048 or block_c * block_m >= 4096 else 4


def _target_strides(target: Tensor) -> tuple[int, int, int]:
    """Strides along n, c and d."""
    if target.dim() == 3:
        return target.stride(0), target.stride(1), target.stride(2)
    return target.stride(0), 0, target.stride(1)
