"""Device functions that the losses share: log-sum-exp, and how a target weighs the classes.

Every form of the loss (class weights, ignored rows, label smoothing, probability targets) is

    loss = Σ_c a_c (lse - x_c),    dloss/dx_c = A p_c - a_c,    A = Σ_c a_c,

for coefficients a_c. The log-sum-exp is kept as the two floats max and log-sum that it is the sum
of: near 1e4 one float would have no digits left for what is behind the point.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastmlp.kernels.device import store


@triton.jit
def finite_max(m):
    """0 for a maximum of -inf, where nothing was seen yet: -inf - (-inf) would be NaN."""
    return tl.where(m == float("-inf"), 0.0, m)


@triton.jit
def online_max_and_sum(x, m, s):
    """The running maximum and Σ exp(x - max) of each row, with the tile ``x`` taken in."""
    m_new = tl.maximum(m, tl.max(x, 1))
    shift = finite_max(m_new)
    return m_new, s * tl.exp(m - shift) + tl.sum(tl.exp(x - shift[:, None]), 1)


@triton.jit
def load_targets(target_ptr, ok, C, ignore_index):
    """Class indices of rows, which of them are ignored, and which are no class at all."""
    target = tl.load(target_ptr, mask=ok, other=0).to(tl.int64)
    ignored = target == ignore_index
    return target, ignored, ((target < 0) | (target >= C)) & (target != ignore_index)


@triton.jit
def load_class_weights(w_ptr, stride_w, cols, mask, HAS_WEIGHT: tl.constexpr):
    if HAS_WEIGHT:
        return tl.load(w_ptr + cols * stride_w, mask=mask, other=0.0).to(tl.float32)
    else:
        return tl.zeros_like(cols).to(tl.float32) + 1.0


@triton.jit
def index_coefficients(target, cols, C, w_ptr, stride_w, smoothing, HAS_WEIGHT: tl.constexpr):
    """a_c = w_c ((1 - ε) [c = target] + ε / C) for a tile of rows and classes; 0 past the last class."""
    w = load_class_weights(w_ptr, stride_w, cols, cols < C, HAS_WEIGHT)
    share = tl.where(cols[None, :] == target[:, None], 1.0 - smoothing, 0.0) + smoothing / C
    return tl.where(cols[None, :] < C, share * w[None, :], 0.0)


@triton.jit
def probability_coefficients(probability, cols, C, w_ptr, stride_w, smoothing, HAS_WEIGHT: tl.constexpr):
    """a_c = w_c ((1 - ε) t_c + ε / C) for a tile of given class probabilities; 0 past the last class."""
    w = load_class_weights(w_ptr, stride_w, cols, cols < C, HAS_WEIGHT)
    share = probability * (1.0 - smoothing) + smoothing / C
    return tl.where(cols[None, :] < C, share * w[None, :], 0.0)


@triton.jit
def row_loss(total, log_sum, weighted_logits, m, z_loss, ignored, invalid):
    """Each row's loss, and its coefficient of p in the gradient.

    ``total`` is A, ``weighted_logits`` Σ a_c (x_c - max). A row that is ignored has neither, and
    one whose target is no class is NaN: said in the loss, since a kernel cannot raise.
    """
    lse = m + log_sum
    loss = total * log_sum - weighted_logits + z_loss * lse * lse
    coefficient = total + 2.0 * z_loss * lse
    if ignored is not None:
        loss = tl.where(ignored, 0.0, tl.where(invalid, float("nan"), loss))
        coefficient = tl.where(ignored, 0.0, tl.where(invalid, float("nan"), coefficient))
    return loss, coefficient


@triton.jit
def cross_entropy_tile(
    x, target_ptr, ok, cols, C, w_ptr, stride_w, ignore_index, smoothing, z_loss,
    pid, num_programs, loss_ptr, partial_ptr, denominator_ptr,
    HAS_WEIGHT: tl.constexpr, MEAN: tl.constexpr, COUNT: tl.constexpr,
):  # fmt: skip
    """Of a tile of rows with all their logits: leave the loss by `leave_sums`, return the sum's gradient."""
    col_ok = cols[None, :] < C
    target, ignored, invalid = load_targets(target_ptr, ok, C, ignore_index)
    known = ok & (ignored == 0) & (invalid == 0)
    x = tl.where(col_ok, x, float("-inf"))
    m = tl.full((x.shape[0],), float("-inf"), tl.float32)
    m, s = online_max_and_sum(x, m, tl.zeros((x.shape[0],), tl.float32))
    log_sum = tl.log(s)
    a = index_coefficients(target, cols, C, w_ptr, stride_w, smoothing, HAS_WEIGHT)
    # Without smoothing a is 0 but at the target, and 0 * inf of the others must not count; with it, it must.
    weighted = tl.where((a != 0) | ((smoothing > 0) & col_ok), a * (x - m[:, None]), 0.0)
    weighted = tl.sum(weighted, 1)
    loss, coefficient = row_loss(tl.sum(a, 1), log_sum, weighted, m, z_loss, ignored, invalid)
    weight = tl.where(known, load_class_weights(w_ptr, stride_w, target, known, HAS_WEIGHT), 0.0)
    loss_sum = tl.sum(tl.where(ok, loss, 0.0), 0)
    weight_sum = tl.sum(weight, 0)
    right = 0.0
    if COUNT:
        right = tl.sum((ok & (tl.argmax(x, 1) == target)).to(tl.float32), 0)
    leave_sums(
        loss_sum, weight_sum, right, pid, num_programs, loss_ptr, partial_ptr, denominator_ptr, MEAN, COUNT
    )
    p = tl.exp((x - m[:, None]) - log_sum[:, None])
    return p * coefficient[:, None] - tl.where(ignored[:, None], 0.0, a)


@triton.jit
def mean_loss(total, weight):
    """A mean over no weight is NaN, as torch's, even where label smoothing leaves a loss to be divided."""
    return tl.where(weight == 0, float("nan"), total / weight)


@triton.jit
def finish_loss(loss_ptr, denominator_ptr, total, weight, MEAN: tl.constexpr):
    """Write the reduced loss, and what its gradient is divided by."""
    denominator = weight if MEAN else 1.0
    tl.store(denominator_ptr, denominator)
    store(loss_ptr, mean_loss(total, denominator))


@triton.jit
def leave_sums(
    loss_sum, weight_sum, right, pid, num_programs, loss_ptr, partial_ptr, denominator_ptr,
    MEAN: tl.constexpr, COUNT: tl.constexpr,
):  # fmt: skip
    """A program's sums of losses, weights and, with COUNT, right answers.

    They go to ``partial_ptr``, (3, num_programs) or without COUNT (2, num_programs), for a later kernel to
    add up. But without COUNT a single program's are the loss at once.
    """
    if COUNT or num_programs > 1:
        tl.store(partial_ptr + pid, loss_sum)
        tl.store(partial_ptr + num_programs + pid, weight_sum)
    else:
        finish_loss(loss_ptr, denominator_ptr, loss_sum, weight_sum, MEAN)
    if COUNT:
        tl.store(partial_ptr + 2 * num_programs + pid, right)
