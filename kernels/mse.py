"""The squared error: one pass forward, one backward, and its part in the head.

    loss = Σ w (x - t)²,    dloss/dx = 2 w (x - t)

Elements are taken as they come, rows mean nothing: a program sums BLOCK of them at a time, the programs'
sums are added up in a fixed order. The backward forms x - t again, so nothing is kept in between.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastmlp.kernels.cross_entropy import finish
from fastmlp.kernels.device import store
from fastmlp.kernels.launch import cdiv, launch
from fastmlp.kernels.softmax import leave_sums

_BLOCK = 1024
# So few elements are summed by one program, which saves the launch of `finish_loss_kernel`.
_ONE_PROGRAM = 16 * _BLOCK
_MOST_PROGRAMS = 1024


@triton.jit
def squared_error_tile(
    x, target_ptr, stride_tc, ok, num_rows, cols, C,
    pid, num_programs, loss_ptr, partial_ptr, denominator_ptr, MEAN: tl.constexpr, COUNT: tl.constexpr,
):  # fmt: skip
    """`cross_entropy_tile` of a tile of rows with all their predictions, of which none is a right answer."""
    inside = ok[:, None] & (cols[None, :] < C)
    pointers = target_ptr[:, None] + cols[None, :].to(tl.int64) * stride_tc
    t = tl.load(pointers, mask=inside, other=0.0).to(tl.float32)
    d = tl.where(inside, x - t, 0.0)
    leave_sums(
        tl.sum(tl.sum(d * d, 1), 0), num_rows.to(tl.float32) * C, 0.0,
        pid, num_programs, loss_ptr, partial_ptr, denominator_ptr, MEAN, COUNT,
    )  # fmt: skip
    return 2.0 * d


@triton.jit
def _load(pointer, i, ok, C, stride_m, stride_c, FLAT: tl.constexpr):
    """Elements number ``i`` of a matrix with C columns, as float32."""
    if not FLAT:
        i = i // C * stride_m + i % C * stride_c
    return tl.load(pointer + i, mask=ok, other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=["count", "per_program"])
def mse_forward_kernel(
    x_ptr, stride_xm, stride_xc,  # predictions (M, C)
    t_ptr, stride_tm, stride_tc,  # targets (M, C)
    w_ptr, stride_wm, stride_wc,  # weights (M, C)
    loss_ptr,  # (M, C), or one number if REDUCE
    partial_ptr,  # (2, programs): sums of losses and of weights
    denominator_ptr,
    count, per_program, C,
    FLAT: tl.constexpr,  # all are contiguous
    HAS_WEIGHT: tl.constexpr,
    REDUCE: tl.constexpr,
    MEAN: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    begin = pid.to(tl.int64) * per_program
    end = tl.minimum(begin + per_program, count)
    loss_sum = tl.zeros((BLOCK,), tl.float32)
    weight_sum = tl.zeros((BLOCK,), tl.float32)
    for first in range(begin, end, BLOCK):
        i = first + tl.arange(0, BLOCK)
        ok = i < end
        d = _load(x_ptr, i, ok, C, stride_xm, stride_xc, FLAT)
        d -= _load(t_ptr, i, ok, C, stride_tm, stride_tc, FLAT)
        loss = d * d
        if HAS_WEIGHT:
            w = _load(w_ptr, i, ok, C, stride_wm, stride_wc, FLAT)
            loss *= w
            weight_sum += w
        if REDUCE:
            loss_sum += loss
        else:
            store(loss_ptr + i, loss, ok)

    if REDUCE:
        loss_total = tl.sum(loss_sum, 0)
        weight_total = tl.sum(weight_sum, 0) if HAS_WEIGHT else (end - begin).to(tl.float32)
        leave_sums(
            loss_total, weight_total, 0.0, pid, tl.num_programs(0),
            loss_ptr, partial_ptr, denominator_ptr, MEAN, False,
        )  # fmt: skip


@triton.jit(do_not_specialize=["count"])
def mse_backward_kernel(
    x_ptr, stride_xm, stride_xc,
    t_ptr, stride_tm, stride_tc,
    w_ptr, stride_wm, stride_wc,
    grad_ptr, stride_gm, stride_gc,  # upstream: (M, C) if EACH, else one number
    denominator_ptr,
    dx_ptr,  # (M, C), contiguous
    count, C,
    FLAT: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    EACH: tl.constexpr,
    MEAN: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    ok = i < count
    if EACH:
        upstream = _load(grad_ptr, i, ok, C, stride_gm, stride_gc, FLAT)
    else:
        upstream = tl.load(grad_ptr).to(tl.float32)
    if MEAN:
        upstream = upstream / tl.load(denominator_ptr)
    d = _load(x_ptr, i, ok, C, stride_xm, stride_xc, FLAT)
    d -= _load(t_ptr, i, ok, C, stride_tm, stride_tc, FLAT)
    if HAS_WEIGHT:
        d *= _load(w_ptr, i, ok, C, stride_wm, stride_wc, FLAT)
    store(dx_ptr + i, 2.0 * upstream * d, ok)


def forward(input: Tensor, target: Tensor, weight: Tensor | None, *, reduction: str) -> tuple[Tensor, Tensor]:
    """The loss in the input's dtype, (M, C) for reduction "none", else a scalar; and what it was divided by.

    input, target, weight (M, C); any strides; neither size is 0. A mean is over the sum of the weights. One
    launch, two for a reduction over many elements.
    """
    count, reduce = input.numel(), reduction != "none"
    each = cdiv(cdiv(count, _MOST_PROGRAMS), _BLOCK) * _BLOCK
    programs = 1 if reduce and count <= _ONE_PROGRAM else cdiv(count, each)
    loss = torch.empty(() if reduce else input.shape, device=input.device, dtype=input.dtype)
    sums = torch.empty(2 * programs + 1, device=input.device, dtype=torch.float32)
    partial, denominator = sums[1:], sums[0]
    operands = _operands(input, target, weight)
    launch(
        mse_forward_kernel,
        (programs,),
        *operands,
        loss, partial, denominator,
        count, count if programs == 1 else each, input.shape[1],
        FLAT=_flat(input, target, weight),
        HAS_WEIGHT=weight is not None,
        REDUCE=reduce,
        MEAN=reduction == "mean",
        BLOCK=_BLOCK,
        num_warps=4,
    )  # fmt: skip
    if reduce:
        finish(partial, programs, loss, denominator, reduction)
    return loss, denominator


def backward(
    grad: Tensor,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    denominator: Tensor,
    *,
    reduction: str,
) -> Tensor:
    """The input's gradient (M, C), contiguous; the target's is the negative of it. One launch.

    grad is the loss' shape, in any strides; ``denominator`` is what `forward` gave.
    """
    each = reduction == "none" and any(grad.stride())  # expanded from one number it is that number
    out = torch.empty(input.shape, device=input.device, dtype=input.dtype)
    launch(
        mse_backward_kernel,
        (cdiv(input.numel(), _BLOCK),),
        *_operands(input, target, weight),
        grad, *(grad.stride() if each else (0, 0)),
        denominator,
        out,
        input.numel(), input.shape[1],
        FLAT=_flat(input, target, weight, grad if each else None),
        HAS_WEIGHT=weight is not None,
        EACH=each,
        MEAN=reduction == "mean",
        BLOCK=_BLOCK,
        num_warps=4,
    )  # fmt: skip
    return out


def _operands(*matrices: Tensor | None) -> list[object]:
    """Each with its strides."""
    return [value for m in matrices for value in (m, *((0, 0) if m is None else m.stride()))]


def _flat(*matrices: Tensor | None) -> bool:
    """Whether the elements' numbers are their places."""
    return all(m is None or m.is_contiguous() for m in matrices)
