"""The last layer and the loss in one kernel: logits, loss, dlogits and the hidden layer's dZ.

For up to 256 classes a program holds the logits of its rows on the chip: X W_Lᵀ + b goes straight
into the softmax, and dlogits straight into dlogits W_L times the hidden activation's derivative.
Or into the squared error: the "logits" are then the predictions, the targets as many numbers a row.
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
from fastmlp.kernels.arguments import TL_DTYPE
from fastmlp.kernels.cross_entropy import finish
from fastmlp.kernels.device import cast, dot, gathered, pointers, store, wait_for_previous
from fastmlp.kernels.launch import arch_of, cdiv, launch, next_power_of_2
from fastmlp.kernels.mse import squared_error_tile
from fastmlp.kernels.softmax import cross_entropy_tile

#: More classes, or outputs, than this do not fit on the chip beside the rest.
MAX_CLASSES = 256


@triton.jit
def head_tile(
    pid, num_programs,
    h_ptr, stride_hm, saved_ptr, stride_sm, stride_hk, stride_sk, previous_slope,
    w_ptr, stride_wc, stride_wk, b_ptr, stride_b,
    t_ptr, stride_t, stride_tc, index_ptr, cw_ptr, stride_cw,
    logits_ptr, dlogits_ptr, stride_dm, dz_ptr, stride_zm,
    loss_ptr, partial_ptr, denominator_ptr,
    M, C, K, ignore_index, smoothing, z_loss,
    LOSS: tl.constexpr,
    PREVIOUS_ACT: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_WEIGHT: tl.constexpr, MEAN: tl.constexpr,
    GATHER: tl.constexpr, COUNT: tl.constexpr, KEEP_LOGITS: tl.constexpr, NEED_GRAD: tl.constexpr,
    NEED_INPUT: tl.constexpr, DTYPE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """The head of BLOCK_M rows. What it leaves of the loss: see `leave_sums`."""
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

    target_ptr = t_ptr + gathered(rows, ok, index_ptr, GATHER).to(tl.int64) * stride_t
    if LOSS == "mse":
        d = squared_error_tile(
            x, target_ptr, stride_tc, ok, tl.minimum(M - pid * BLOCK_M, BLOCK_M), cols, C,
            pid, num_programs, loss_ptr, partial_ptr, denominator_ptr, MEAN, COUNT,
        )  # fmt: skip
    else:
        d = cross_entropy_tile(
            x, target_ptr, ok, cols, C, cw_ptr, stride_cw, ignore_index, smoothing, z_loss,
            pid, num_programs, loss_ptr, partial_ptr, denominator_ptr, HAS_WEIGHT, MEAN, COUNT,
        )  # fmt: skip
    if NEED_GRAD:
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
    t_ptr, stride_t, stride_tc,  # class indices (M,), or the squared error's targets (M, C)
    index_ptr,  # (M,): whose targets, if GATHER
    cw_ptr, stride_cw,  # class weights (C,)
    logits_ptr,  # (M, C)
    dlogits_ptr, stride_dm,  # (M, C), rows contiguous
    dz_ptr, stride_zm,  # (M, K), rows contiguous
    loss_ptr, partial_ptr, denominator_ptr,
    M, C, K,
    ignore_index, smoothing, z_loss,
    LOSS: tl.constexpr,  # "cross_entropy" or "mse"
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
        w_ptr, stride_wc, stride_wk, b_ptr, stride_b,
        t_ptr, stride_t, stride_tc, index_ptr, cw_ptr, stride_cw,
        logits_ptr, dlogits_ptr, stride_dm, dz_ptr, stride_zm, loss_ptr, partial_ptr, denominator_ptr,
        M, C, K, ignore_index, smoothing, z_loss,
        LOSS, PREVIOUS_ACT, HAS_BIAS, HAS_WEIGHT, MEAN, GATHER, COUNT, KEEP_LOGITS, NEED_GRAD, NEED_INPUT,
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
    keep_logits: bool,
    need_grad: bool,
    need_input: bool,
    dtype: torch.dtype,
    loss_dtype: torch.dtype,
    precision: str,
    loss: str = "cross_entropy",
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    index: Tensor | None = None,
    out: Gradients | None = None,
    pdl: bool = False,
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """The loss of h weightᵀ + bias, with its gradients: "cross_entropy" or "mse".

    Returns the loss, what it was divided by, the logits (M, C), dlogits (M, C) and dZ (M, K).

    h (M, K), weight (C, K) with C at most `MAX_CLASSES`, bias (C,); target (M,) class indices and
    class_weight (C,), or target (M, C) floating; any strides; M, C and K are not 0; ``reduction`` "mean" or
    "sum". One launch, and one to sum the programs' losses where there are several. With ``index`` (M,) the
    target of row m is target[index[m]].

    With ``out`` this is a step of the training engine: one launch, which writes there and leaves the
    loss in sums that the update adds up. What it returns then are those buffers; no loss.
    """
    (m, k), c = h.shape, weight.shape[0]
    tile = configs.lookup("head", arch_of(h), configs.precision_class(dtype, precision), c, k)
    programs = cdiv(m, tile.BLOCK_M)

    def empty(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.empty(shape, device=h.device, dtype=dtype)

    value = denominator = None
    if out is None:
        value = empty(dtype=loss_dtype)
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
        target, *target_strides(target),
        index,
        class_weight, 0 if class_weight is None else class_weight.stride(0),
        logits,
        dlogits, 0 if dlogits is None else dlogits.stride(0),
        dz, 0 if dz is None else dz.stride(0),
        value, partial, denominator,
        m, c, k,
        ignore_index, float(label_smoothing), float(z_loss),
        LOSS=loss,
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
    if value is not None and denominator is not None:
        finish(partial, programs, value, denominator, reduction)
    return value, denominator, logits, dlogits, dz


def target_strides(target: Tensor) -> tuple[int, int]:
    """Along the rows and, of targets (M, C), along their numbers."""
    return target.stride(0), target.stride(1) if target.dim() == 2 else 0
