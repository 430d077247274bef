"""Device functions that the losses share: log-sum-exp, and how a target weighs the classes.

Every form of the loss (class weights, ignored rows, label smoothing, probability targets) is

    loss = Σ_c a_c (lse - x_c),    dloss/dx_c = A p_c - a_c,    A = Σ_c a_c,

for coefficients a_c. The log-sum-exp is kept as two floats, max and log-sum, whose
sum it is: near 1e4 one float would have no digits left after the point.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from fastmlp.kernels.common.arguments import Vector, vector
from fastmlp.kernels.common.device import store


class Criterion(NamedTuple):
    """A loss, and what it is taken against."""

    name: Any  # "cross_entropy" or "mse"
    reduction: Any  # "mean", "sum" or "none"
    target: Any  # the head's is a `Source`; `Rows` of the losses that read logits
    # Of cross-entropy alone:
    weight: Vector | None = None  # (C,)
    ignore_index: Any = None
    smoothing: Any = None  # None for 0
    z_loss: Any = None


class Sums(NamedTuple):
    """Where programs leave the loss, or what a later kernel makes it of."""

    partial: Any  # float32: (2, programs); where there is no loss (3, programs)
    loss: Any = None
    denominator: Any = None  # what the loss was divided by


_CONSTANTS = {name: tl.constexpr(name) for name in ("cross_entropy", "mse", "mean", "sum", "none")}


def criterion(
    name: str,
    reduction: str,
    target: Any,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
) -> Criterion:
    """A loss as a kernel's argument."""
    constants = _CONSTANTS[name], _CONSTANTS[reduction]
    if name == "mse":
        return Criterion(*constants, target)
    smoothing = float(label_smoothing) if label_smoothing > 0 else None
    return Criterion(*constants, target, vector(weight), ignore_index, smoothing, float(z_loss))


@triton.jit
def finite_max(m):
    """0 for a maximum of -inf, where nothing was seen yet: -inf - (-inf) would be NaN."""
    return tl.where(m == float("-inf"), 0.0, m)


@triton.jit
def online_max_and_sum(x, m, s):
    """The running maximum and Σ exp(x - max) of each row, the tile ``x`` included."""
    m_new = tl.maximum(m, tl.max(x, 1))
    shift = finite_max(m_new)
    return m_new, s * tl.exp(m - shift) + tl.sum(tl.exp(x - shift[:, None]), 1)


@triton.jit
def load_targets(pointers, ok, C, ignore_index):
    """Class indices of rows, which of them are ignored, and which are no class at all."""
    target = tl.load(pointers, mask=ok, other=0).to(tl.int64)
    ignored = target == ignore_index
    return target, ignored, ((target < 0) | (target >= C)) & (target != ignore_index)


@triton.jit
def class_weights(weight, classes, mask):
    """Their weights, float32; 1 where there are none."""
    if weight is None:
        return tl.zeros_like(classes).to(tl.float32) + 1.0
    else:
        return tl.load(weight.ptr + classes * weight.stride, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def index_coefficients(target, cols, C, weight, smoothing):
    """a_c = w_c ((1 - ε) [c = target] + ε / C) for a tile of rows and classes; 0 past the last class."""
    share = cols[None, :] == target[:, None]
    if smoothing is None:
        share = share.to(tl.float32)
    else:
        share = tl.where(share, 1.0 - smoothing, 0.0) + smoothing / C
    return tl.where(cols[None, :] < C, share * class_weights(weight, cols, cols < C)[None, :], 0.0)


@triton.jit
def probability_coefficients(share, cols, C, weight, smoothing):
    """a_c = w_c ((1 - ε) t_c + ε / C) for a tile of given class probabilities; 0 past the last class."""
    if smoothing is not None:
        share = share * (1.0 - smoothing) + smoothing / C
    return tl.where(cols[None, :] < C, share * class_weights(weight, cols, cols < C)[None, :], 0.0)


@triton.jit
def row_loss(total, log_sum, weighted_logits, m, z_loss, ignored, invalid):
    """Each row's loss, and its coefficient of p in the gradient.

    ``total`` is A, ``weighted_logits`` Σ a_c (x_c - max). A row that is ignored has neither. If
    its target is not a class, its loss is NaN, since a kernel cannot raise.
    """
    lse = m + log_sum
    loss = total * log_sum - weighted_logits + z_loss * lse * lse
    coefficient = total + 2.0 * z_loss * lse
    if ignored is not None:
        loss = tl.where(ignored, 0.0, tl.where(invalid, float("nan"), loss))
        coefficient = tl.where(ignored, 0.0, tl.where(invalid, float("nan"), coefficient))
    return loss, coefficient


@triton.jit
def cross_entropy_tile(x, targets, ok, cols, C, criterion, pid, num_programs, sums):
    """For a tile of rows with all their logits: leave the loss by `leave_sums`, return the sum's gradient."""
    col_ok = cols[None, :] < C
    target, ignored, invalid = load_targets(targets, ok, C, criterion.ignore_index)
    known = ok & (ignored == 0) & (invalid == 0)
    x = tl.where(col_ok, x, float("-inf"))
    m = tl.full((x.shape[0],), float("-inf"), tl.float32)
    m, s = online_max_and_sum(x, m, tl.zeros((x.shape[0],), tl.float32))
    log_sum = tl.log(s)
    a = index_coefficients(target, cols, C, criterion.weight, criterion.smoothing)
    # Without smoothing a is 0 except at the target, and 0 * inf elsewhere must not count; with it, it must.
    counts = a != 0 if criterion.smoothing is None else col_ok
    weighted = tl.sum(tl.where(counts, a * (x - m[:, None]), 0.0), 1)
    loss, coefficient = row_loss(tl.sum(a, 1), log_sum, weighted, m, criterion.z_loss, ignored, invalid)
    weight = tl.where(known, class_weights(criterion.weight, target, known), 0.0)
    right = 0.0
    if sums.loss is None:
        right = tl.sum((ok & (tl.argmax(x, 1) == target)).to(tl.float32), 0)
    loss_sum = tl.sum(tl.where(ok, loss, 0.0), 0)
    leave_sums(loss_sum, tl.sum(weight, 0), right, pid, num_programs, sums, criterion.reduction)
    p = tl.exp((x - m[:, None]) - log_sum[:, None])
    return p * coefficient[:, None] - tl.where(ignored[:, None], 0.0, a)


@triton.jit
def mean_loss(total, weight):
    """A mean over no weight is NaN, as torch's, even where label smoothing leaves a loss to be divided."""
    return tl.where(weight == 0, float("nan"), total / weight)


@triton.jit
def finish_loss(sums, total, weight, REDUCTION: tl.constexpr):
    """Write the reduced loss, and what its gradient is divided by."""
    denominator = weight if REDUCTION == "mean" else 1.0
    tl.store(sums.denominator, denominator)
    store(sums.loss, mean_loss(total, denominator))


@triton.jit
def leave_sums(loss_sum, weight_sum, right, pid, num_programs, sums, REDUCTION: tl.constexpr):
    """A program's sums of losses, weights and, where there is no loss to be written, right answers.

    They go to ``sums.partial`` for a later kernel to add up; a single program's are the loss at once.
    """
    if sums.loss is None or num_programs > 1:
        tl.store(sums.partial + pid, loss_sum)
        tl.store(sums.partial + num_programs + pid, weight_sum)
    else:
        finish_loss(sums, loss_sum, weight_sum, REDUCTION)
    if sums.loss is None:
        tl.store(sums.partial + 2 * num_programs + pid, right)
