"""The squared error: one pass forward, one backward, and its part in the head.

    loss = Σ w (x - t)²,    dloss/dx = 2 w (x - t)

Elements are taken as they come, whatever their rows: a program sums BLOCK of them at a time, and the
programs' sums are added up in a fixed order. Whole blocks have no mask, which would split the loads of 16
bytes, as the compiler does not know where it ends. The backward forms x - t again, so nothing is kept.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastmlp.kernels.common.arguments import Multiple, aligned, multiple
from fastmlp.kernels.common.device import product, store
from fastmlp.kernels.launch import cdiv, launch
from fastmlp.kernels.loss.cross_entropy import finish, partial_sums
from fastmlp.kernels.loss.softmax import Sums, leave_sums

_BLOCK = 1024
# Up to so many elements are summed by one program, which saves the launch of `finish_loss_kernel`.
_ONE_PROGRAM = 16 * _BLOCK
_MOST_PROGRAMS = 1024


class Elements(NamedTuple):
    """The elements of a matrix (M, C), one after another; without strides if a number is its place."""

    ptr: Any
    row: Multiple | None
    col: Multiple | None


@triton.jit
def squared_error_tile(x, targets, ok, num_rows, cols, C, criterion, pid, num_programs, sums):
    """As `cross_entropy_tile`, for a tile of rows with all their predictions; none is a right answer."""
    inside = ok[:, None] & (cols[None, :] < C)
    pointers = targets[:, None] + cols[None, :].to(tl.int64) * criterion.target.matrix.col
    t = tl.load(pointers, mask=inside, other=0.0).to(tl.float32)
    d = tl.where(inside, x - t, 0.0)
    loss, weight = tl.sum(tl.sum(product(d, d), 1), 0), num_rows.to(tl.float32) * C
    leave_sums(loss, weight, 0.0, pid, num_programs, sums, criterion.reduction)
    return 2.0 * d


@triton.jit
def _load(x, i, ok, C):
    """Elements number ``i`` of a matrix with C columns, float32; ``ok`` is None if all are there."""
    if x.row is not None:
        i = i // aligned(C) * aligned(x.row) + i % aligned(C) * aligned(x.col)
    if ok is None:
        return tl.load(x.ptr + i).to(tl.float32)
    else:
        return tl.load(x.ptr + i, mask=ok, other=0.0).to(tl.float32)


@triton.jit
def _add_block(i, ok, x, target, weight, C, sums, loss_sum, weight_sum, REDUCTION: tl.constexpr):
    """Add the elements ``i`` to the sums, or store their losses for reduction "none"."""
    d = _load(x, i, ok, C) - _load(target, i, ok, C)
    loss = d * d
    if weight is not None:
        w = _load(weight, i, ok, C)
        loss *= w
        weight_sum += w
    if REDUCTION == "none":
        store(sums.loss + i, loss, ok)
    else:
        loss_sum += loss
    return loss_sum, weight_sum


@triton.jit(do_not_specialize=["count", "per_program"])
def mse_forward_kernel(
    x, target, weight,  # (M, C), Elements
    sums,  # its loss: one number, or of reduction "none" (M, C)
    count, per_program,
    C,  # a Multiple
    REDUCTION: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    begin = pid.to(tl.int64) * tl.cdiv(per_program, BLOCK) * BLOCK  # a single program's share is any number
    end = tl.minimum(begin + per_program, count)
    loss_sum = tl.zeros((BLOCK,), tl.float32)
    weight_sum = tl.zeros((BLOCK,), tl.float32)
    whole = begin + (end - begin) // BLOCK * BLOCK
    for first in range(begin, whole, BLOCK):
        i = first + tl.arange(0, BLOCK)
        loss_sum, weight_sum = _add_block(
            i, None, x, target, weight, C, sums, loss_sum, weight_sum, REDUCTION
        )
    if whole < end:
        i = whole + tl.arange(0, BLOCK)
        loss_sum, weight_sum = _add_block(
            i, i < end, x, target, weight, C, sums, loss_sum, weight_sum, REDUCTION
        )

    if REDUCTION != "none":
        loss_total = tl.sum(loss_sum, 0)
        weight_total = (end - begin).to(tl.float32) if weight is None else tl.sum(weight_sum, 0)
        leave_sums(loss_total, weight_total, 0.0, pid, tl.num_programs(0), sums, REDUCTION)


@triton.jit
def _store_gradient(i, ok, x, target, weight, grad, denominator_ptr, dx_ptr, C, EACH: tl.constexpr):
    """The gradient of the elements ``i``; arguments as the kernel's."""
    upstream = _load(grad, i, ok, C) if EACH else tl.load(grad.ptr).to(tl.float32)
    if denominator_ptr is not None:
        upstream = upstream / tl.load(denominator_ptr)
    d = _load(x, i, ok, C) - _load(target, i, ok, C)
    if weight is not None:
        d *= _load(weight, i, ok, C)
    store(dx_ptr + i, 2.0 * upstream * d, ok)


@triton.jit(do_not_specialize=["count"])
def mse_backward_kernel(
    x, target, weight,  # as in the forward
    grad,  # upstream: (M, C) if EACH, else one number
    denominator_ptr,  # None where the loss was not divided
    dx_ptr,  # (M, C), contiguous
    count,
    C,  # a Multiple
    EACH: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0).to(tl.int64) * BLOCK
    i = first + tl.arange(0, BLOCK)
    if first + BLOCK <= count:
        _store_gradient(i, None, x, target, weight, grad, denominator_ptr, dx_ptr, C, EACH)
    else:
        _store_gradient(i, i < count, x, target, weight, grad, denominator_ptr, dx_ptr, C, EACH)


def forward(input: Tensor, target: Tensor, weight: Tensor | None, *, reduction: str) -> tuple[Tensor, Tensor]:
    """The loss in the input's dtype, (M, C) for reduction "none", else a scalar; and what it was divided by.

    input, target, weight (M, C); any strides; neither size is 0. A mean is over the sum of the weights. One
    launch, two for a reduction over many elements.
    """
    count, each = input.numel(), reduction == "none"
    share = cdiv(cdiv(count, _MOST_PROGRAMS), _BLOCK) * _BLOCK
    programs = cdiv(count, share) if each or count > _ONE_PROGRAM else 1
    loss = torch.empty(input.shape if each else (), device=input.device, dtype=input.dtype)
    denominator = torch.empty((), device=input.device, dtype=torch.float32)
    sums = Sums(partial_sums(1 if each else programs, denominator), loss, denominator)
    launch(
        mse_forward_kernel,
        (programs,),
        _elements(input), _elements(target), _elements(weight), sums,
        count, count if programs == 1 else share, multiple(input.shape[1]),
        REDUCTION=reduction,
        BLOCK=_BLOCK,
        num_warps=_warps(input),
    )  # fmt: skip
    if not each:
        finish(sums, programs, reduction)
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
        _elements(input), _elements(target), _elements(weight),
        _elements(grad) if each else Elements(grad, None, None),
        denominator if reduction == "mean" else None,
        out, input.numel(), multiple(input.shape[1]),
        EACH=each,
        BLOCK=_BLOCK,
        num_warps=_warps(input),
    )  # fmt: skip
    return out


def _warps(input: Tensor) -> int:
    """Warps for a block, of 16 bytes per thread."""
    return _BLOCK * input.element_size() // (16 * 32)


def _elements(tensor: Tensor | None) -> Elements | None:
    """A matrix as a kernel's argument."""
    if tensor is None:
        return None
    if tensor.is_contiguous():
        return Elements(tensor, None, None)
    return Elements(tensor, *map(multiple, tensor.stride()))
