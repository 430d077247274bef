"""The classifier head in one kernel: logits, softmax, loss, dlogits and the hidden layer's dZ.

For up to 256 classes a program holds the logits of its rows on the chip: X W_Lᵀ + b goes straight
into the softmax, and dlogits straight into dlogits W_L times the hidden activation's derivative.
The logits reach memory only when asked for. What leaves is the gradient of the *sum* of the rows'
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

from fastmlp.kernels import configs
from fastmlp.kernels.activations import undo
from fastmlp.kernels.cross_entropy import finish
from fastmlp.kernels.device import cast, dot, gathered, pointers, store, wait_for_previous
from fastmlp.kernels.launch import arch_of, cdiv, launch, next_power_of_2
from fastmlp.kernels.linear import TL_DTYPE
from fastmlp.kernels.softmax import (
    finish_loss,
    index_coefficients,
    load_class_weights,
    load_targets,
    online_max_and_sum,
    row_loss,
)

#: More classes than this do not fit on the chip beside the rest.
MAX_CLASSES = 256


@triton.jit
def head_tile(
    pid, num_programs,
    h_ptr, stride_hm, saved_ptr, stride_sm, stride_hk, stride_sk, previous_slope,
    w_ptr, stride_wc, stride_wk, b_ptr, stride_b,
    t_ptr, stride_t, index_ptr, cw_ptr, stride_cw,
    logits_ptr, dlogits_ptr, stride_dm, dz_ptr, stride_zm,
    loss_ptr, partial_ptr, denominator_ptr,
    M, C, K, ignore_index, smoothing, z_loss,
    PREVIOUS_ACT: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_WEIGHT: tl.constexpr, MEAN: tl.constexpr,
    GATHER: tl.constexpr, COUNT: tl.constexpr, KEEP_LOGITS: tl.constexpr, NEED_GRAD: tl.constexpr,
    NEED_INPUT: tl.constexpr, DTYPE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """The head of BLOCK_M rows.

    With COUNT it leaves its sums of losses, target weights and right answers in ``partial_ptr``
    (3, programs), for the update to add up; without, the loss is finished at once where a single
    program does all rows.
    """
    rows = pid * BLOCK_M + tl.arange(0, BLOCK_M)
    cols = tl.arange(0, BLOCK_C)
    k = tl.arange(0, BLOCK_K)
    ok = rows < M
    row_ok = ok[:, None]
    col_ok = cols[None, :] < C

    h = pointers(h_ptr, rows, k, stride_hm, stride_hk)
    wt = pointers(w_ptr, k, cols, stride_wk, stride_wc)
    x = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    for start in range(0, K, BLOCK_K):
        h_tile = tl.load(h, mask=row_ok & (k[None, :] < K - start), other=0.0)
        w_tile = tl.load(wt, mask=col_ok & (k[:, None] < K - start), other=0.0)
        x = dot(h_tile, w_tile, x, DTYPE, PRECISION)
        h += BLOCK_K * stride_hk
        wt += BLOCK_K * stride_wk
    if HAS_BIAS:
        x += tl.load(b_ptr + cols * stride_b, mask=cols < C, other=0.0).to(tl.float32)[None, :]
    inside = row_ok & col_ok
    if KEEP_LOGITS:
        store(logits_ptr + rows[:, None].to(tl.int64) * C + cols[None, :], x, inside)

    examples = gathered(rows, ok, index_ptr, GATHER)
    target, ignored, invalid = load_targets(t_ptr + examples.to(tl.int64) * stride_t, ok, C, ignore_index)
    known = ok & (ignored == 0) & (invalid == 0)
    x = tl.where(col_ok, x, float("-inf"))
    m = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    m, s = online_max_and_sum(x, m, tl.zeros((BLOCK_M,), tl.float32))
    log_sum = tl.log(s)
    a = index_coefficients(target, cols, C, cw_ptr, stride_cw, smoothing, HAS_WEIGHT)
    # Without smoothing a is 0 but at the target, and 0 * inf of the others must not count; with it, it must.
    weighted = tl.where((a != 0) | ((smoothing > 0) & col_ok), a * (x - m[:, None]), 0.0)
    weighted = tl.sum(weighted, 1)
    loss, coefficient = row_loss(tl.sum(a, 1), log_sum, weighted, m, z_loss, ignored, invalid)
    weight = tl.where(known, load_class_weights(cw_ptr, stride_cw, target, known, HAS_WEIGHT), 0.0)
    loss_sum = tl.sum(tl.where(ok, loss, 0.0), 0)
    weight_sum = tl.sum(weight, 0)
    if COUNT or num_programs > 1:
        tl.store(partial_ptr + pid, loss_sum)
        tl.store(partial_ptr + num_programs + pid, weight_sum)
    else:
        finish_loss(loss_ptr, denominator_ptr, loss_sum, weight_sum, MEAN)
    if COUNT:
        right = tl.sum((ok & (tl.argmax(x, 1) == target)).to(tl.float32), 0)
        tl.store(partial_ptr + 2 * num_programs + pid, right)

    if NEED_GRAD:
        p = tl.exp((x - m[:, None]) - log_sum[:, None])
        d = p * coefficient[:, None] - tl.where(ignored[:, None], 0.0, a)
        d = cast(tl.where(inside, d, 0.0), DTYPE)
        store(dlogits_ptr + rows[:, None].to(tl.int64) * stride_dm + cols[None, :], d, inside)
        if NEED_INPUT:
            w = pointers(w_ptr, cols, k, stride_wc, stride_wk)
            for start in range(0, K, BLOCK_K):
                features = start + k
                k_ok = features[None, :] < K
                w_tile = tl.load(w, mask=(cols[:, None] < C) & k_ok, other=0.0)
                dz = dot(d, w_tile, tl.zeros((BLOCK_M, BLOCK_K), tl.float32), DTYPE, PRECISION)
                if PREVIOUS_ACT != "none":
                    saved = pointers(saved_ptr, rows, features, stride_sm, stride_sk)
                    y = tl.load(saved, mask=row_ok & k_ok, other=0.0).to(tl.float32)
                    dz = undo(dz, y, previous_slope, PREVIOUS_ACT)
                store(dz_ptr + rows[:, None].to(tl.int64) * stride_zm + features[None, :], dz, row_ok & k_ok)
                w += BLOCK_K * stride_wk


@triton.jit(do_not_specialize=["M"])
def head_kernel(
    h_ptr, stride_hm, stride_hk,  # hidden outputs (M, K)
    saved_ptr, stride_sm, stride_sk, previous_slope,  # for the hidden activation's derivative (M, K)
    w_ptr, stride_wc, stride_wk,  # W_L (C, K)
    b_ptr, stride_b,
    t_ptr, stride_t,  # class indices (M,)
    index_ptr,  # (M,): whose class indices, if GATHER
    cw_ptr, stride_cw,  # class weights (C,)
    logits_ptr,  # (M, C)
    dlogits_ptr, stride_dm,  # (M, C), rows contiguous
    dz_ptr, stride_zm,  # (M, K), rows contiguous
    loss_ptr, partial_ptr, denominator_ptr,
    M, C, K,
    ignore_index, smoothing, z_loss,
    PREVIOUS_ACT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    MEAN: tl.constexpr,
    GATHER: tl.constexpr,
    COUNT: tl.constexpr,
    KEEP_LOGITS: tl.constexpr,
    NEED_GRAD: tl.constexpr,
    NEED_INPUT: tl.constexpr,
    PDL: tl.constexpr,
    DTYPE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    wait_for_previous(PDL)
    head_tile(
        tl.program_id(0), tl.num_programs(0),
        h_ptr, stride_hm, saved_ptr, stride_sm, stride_hk, stride_sk, previous_slope,
        w_ptr, stride_wc, stride_wk, b_ptr, stride_b, t_ptr, stride_t, index_ptr, cw_ptr, stride_cw,
        logits_ptr, dlogits_ptr, stride_dm, dz_ptr, stride_zm, loss_ptr, partial_ptr, denominator_ptr,
        M, C, K, ignore_index, smoothing, z_loss,
        PREVIOUS_ACT, HAS_BIAS, HAS_WEIGHT, MEAN, GATHER, COUNT, KEEP_LOGITS, NEED_GRAD, NEED_INPUT,
        DTYPE, PRECISION, BLOCK_M, BLOCK_C, BLOCK_K,
    )  # fmt: skip


class Gradients(NamedTuple):
    """Where a training step's head writes: buffers that are there before it."""

    partial: Tensor  # (3, programs or more) float32, contiguous: see `head_tile`
    dlogits: Tensor  # (M, C), rows contiguous
    dz: Tensor | None  # (M, K), rows contiguous


def head_programs(m: int, arch: str, precision: str, c: int, k: int) -> int:
    """How many programs, each with its own sums, the head of ``m`` rows takes."""
    return cdiv(m, configs.lookup("head", arch, precision, c, k).BLOCK_M)


def head(
    h: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    class_weight: Tensor | None,
    *,
    previous_act: str,
    previous_saved: Tensor | None,
    previous_slope: float,
    reduction: str,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    keep_logits: bool,
    need_grad: bool,
    need_input: bool,
    dtype: torch.dtype,
    loss_dtype: torch.dtype,
    precision: str,
    index: Tensor | None = None,
    out: Gradients | None = None,
    pdl: bool = False,
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """The loss of h weightᵀ + bias against class indices, with its gradients.

    Returns the loss, what it was divided by, the logits (M, C), dlogits (M, C) and dZ (M, K).

    h (M, K), weight (C, K) with C at most `MAX_CLASSES`, bias (C,), target (M,), class_weight (C,);
    any strides; M, C and K are not 0; ``reduction`` "mean" or "sum". One launch, and one to sum the
    programs' losses where there are several. With ``index`` (M,) row m's class is target[index[m]].

    With ``out`` this is a step of the training engine: one launch, which writes there and leaves the
    loss in sums that the update adds up. What it returns then are those buffers; no loss.
    """
    (m, k), c = h.shape, weight.shape[0]
    tile = configs.lookup("head", arch_of(h), configs.precision_class(dtype, precision), c, k)
    programs = cdiv(m, tile.BLOCK_M)

    def empty(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.empty(shape, device=h.device, dtype=dtype)

    loss = denominator = None
    if out is None:
        loss = empty(dtype=loss_dtype)
        sums = empty(2 * programs + 1, dtype=torch.float32)
        denominator, partial = sums[0], sums[1:]
        dlogits = empty(m, c) if need_grad else None
        dz = empty(m, k) if need_grad and need_input else None
    else:
        partial, dlogits, dz = out
    logits = empty(m, c) if keep_logits else None
    saved = h if previous_saved is None else previous_saved
    launch(
        head_kernel,
        (programs,),
        h, *h.stride(),
        saved, *saved.stride(), previous_slope,
        weight, *weight.stride(),
        bias, 0 if bias is None else bias.stride(0),
        target, target.stride(0),
        index,
        class_weight, 0 if class_weight is None else class_weight.stride(0),
        logits,
        dlogits, 0 if dlogits is None else dlogits.stride(0),
        dz, 0 if dz is None else dz.stride(0),
        loss, partial, denominator,
        m, c, k,
        ignore_index, float(label_smoothing), float(z_loss),
        PREVIOUS_ACT=previous_act,
        HAS_BIAS=bias is not None,
        HAS_WEIGHT=class_weight is not None,
        MEAN=reduction == "mean",
        GATHER=index is not None,
        COUNT=out is not None,
        KEEP_LOGITS=keep_logits,
        NEED_GRAD=need_grad,
        NEED_INPUT=dz is not None,
        PDL=pdl,
        DTYPE=TL_DTYPE[dtype],
        PRECISION=precision,
        BLOCK_M=tile.BLOCK_M,
        BLOCK_C=max(next_power_of_2(c), 16),
        BLOCK_K=tile.BLOCK_K,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )  # fmt: skip
    if loss is not None and denominator is not None:
        finish(partial, programs, loss, denominator, reduction)
    return loss, denominator, logits, dlogits, dz
