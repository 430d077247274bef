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
def mean_loss(total, weight):
    """A mean over no weight is NaN, as torch's, even where label smoothing leaves a loss to be divided."""
    return tl.where(weight == 0, float("nan"), total / weight)


@triton.jit
def finish_loss(loss_ptr, denominator_ptr, total, weight, MEAN: tl.constexpr):
    """Write the reduced loss, and what its gradient is divided by."""
    denominator = weight if MEAN else 1.0
    tl.store(denominator_ptr, denominator)
    store(loss_ptr, mean_loss(total, denominator))
