"""``fastmlp::linear_cross_entropy``: linear layer and softmax cross-entropy, without the logits in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fastmlp import backends
from fastmlp.autograd.linear_cross_entropy import (
    Grads,
    LinearLoss,
    Work,
    divided,
    forms_in_forward,
    loss_and_grads,
    missing_grads,
    reference,
)
from fastmlp.autograd.node import torch_grads, transformed
from fastmlp.autograd.tiling import Plan, plan
from fastmlp.backends.base import LossOptions, Scale
from fastmlp.ops.register import differentiable, op

_TENSORS = "Tensor x, Tensor weight, Tensor? bias, Tensor target, Tensor? class_weight"
_JOB = (
    "SymInt ignore_index, str reduction, float label_smoothing, ScalarType dtype, ScalarType loss_dtype, "
    "SymInt? workspace"
)


def _job(
    x: Tensor, weight: Tensor, target: Tensor, need_params: bool, described: Sequence[Any]
) -> LinearLoss:
    """What is computed, in tiles that depend on the sizes: for the ops alone, a trace must not ask."""
    *_, dtype, loss_dtype, workspace = described
    job = _untiled(x, described)
    dense = target.is_floating_point() or job.options.label_smoothing > 0
    tiles = plan(
        x,
        weight,
        dtype,
        loss_dtype,
        scratch=job.backend.loss_scratch(dtype, dense),
        need_params=need_params,
        workspace=workspace,
    )
    return replace(job, plan=tiles)


def _untiled(x: Tensor, described: Sequence[Any]) -> LinearLoss:
    ignore_index, reduction, label_smoothing, dtype, loss_dtype, _ = described
    options = LossOptions(ignore_index, reduction, label_smoothing)
    return LinearLoss(backends.kernels(x), Plan(0, 0), options, dtype, loss_dtype)


def _like_needed(needs: Sequence[bool], *params: Tensor | None) -> list[Tensor]:
    return [p.new_empty(p.shape) for p, need in zip(params, needs) if need and p is not None]


def _needed(grads: Grads, needs: Sequence[bool]) -> list[Tensor]:
    all_of_them = (grads.input, grads.weight, grads.bias)
    return [grad for grad, need in zip(all_of_them, needs) if need and grad is not None]


def _fake(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    class_weight: Tensor | None,
    *described: Any,
) -> list[Tensor]:
    job = _untiled(x, described[:-1])
    shape = (x.shape[0], weight.shape[1]) if job.options.reduction == "none" else ()
    formed = _like_needed(described[-1], x, weight, bias) if forms_in_forward(job) else []
    return [x.new_empty(shape, dtype=job.loss_dtype), *formed]


def _setup(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    x, weight, bias, target, class_weight, *ctx.described, ctx.needs = inputs
    ctx.save_for_backward(x, weight, bias, target, class_weight, *output[1:])
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, *grads: Tensor | None) -> list[Tensor | None]:
    x, weight, bias, target, class_weight, *kept = ctx.saved_tensors
    upstream, needs = grads[0], ctx.needs
    if upstream is None:
        return []
    tensors = (x, weight, bias, target, class_weight)
    job = _untiled(x, ctx.described)
    if transformed(upstream):

        def again(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            return reference(job, x, weight, bias, target, class_weight)

        return _there(torch_grads(again, (x, weight, bias), needs, upstream), bias)
    if forms_in_forward(job):
        wide = torch.promote_types(job.dtype, torch.float32)
        lacking = upstream.to(wide).view(1)  # not a scalar, which would be rounded to 16 bits first
        some = ((grad * lacking).to(grad.dtype) for grad in kept)
    else:
        some = iter(_backward(upstream, *tensors, *ctx.described, needs))
    return _there([next(some) if need else None for need in needs], bias)


def _there(grads: list[Tensor | None], bias: Tensor | None) -> list[Tensor | None]:
    return grads if bias is not None else grads[:2]


@differentiable(
    "linear_cross_entropy", f"({_TENSORS}, {_JOB}, bool[] needs) -> Tensor[]", _fake, _setup, _gradients
)
def _linear_cross_entropy(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    class_weight: Tensor | None,
    *described: Any,
) -> list[Tensor]:
    """The loss; and where `forms_in_forward` those gradients that are needed, for an upstream gradient of 1.

    A graph that runs the forward runs the backward too, so all are formed here, while the logits are at hand.

    Args:
        x: (N, K), no size 0.
        weight: (C, D, K).
        bias: (C, D).
        target: class indices (N, D) or probabilities (N, C, D).
        class_weight: (C,).
        described: `_JOB`, and whether x, weight and bias need a gradient.
    """
    needs, params = described[-1], (x, weight, bias)
    job = _job(x, weight, target, any(needs[1:]), described[:-1])
    work, total = divided(Work.of(job, x, weight, bias, target, class_weight))
    loss, share, grads, stats = loss_and_grads(work, total, needs, params)
    if not forms_in_forward(job):
        return [loss]
    missing = [need and g is None for need, g in zip(needs, (grads.input, grads.weight, grads.bias))]
    if any(missing):
        each = share.expand(len(x), weight.shape[1])
        grads = grads.or_else(missing_grads(work, stats, each, missing, params))
    return [loss, *_needed(grads, needs)]


def _fake_backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, *others: Any
) -> list[Tensor]:
    return _like_needed(others[-1], x, weight, bias)


@op(
    "linear_cross_entropy_backward",
    f"(Tensor grad, {_TENSORS}, {_JOB}, bool[] needs) -> Tensor[]",
    _fake_backward,
)
def _backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    class_weight: Tensor | None,
    *described: Any,
) -> list[Tensor]:
    """Those gradients that are needed, where the forward forms none, from the loss' (N, D) or ()."""
    needs, params = described[-1], (x, weight, bias)
    job = _job(x, weight, target, any(needs[1:]), described[:-1])
    work, total = divided(Work.of(job, x, weight, bias, target, class_weight))
    _, stats = work.losses(None, Grads(), None)
    each = grad.to(total.dtype)
    if job.options.reduction != "none":
        share = Scale(torch.ones_like(total), total).value()
        each = (each * share).expand(len(x), weight.shape[1])
    return _needed(missing_grads(work, stats, each, needs, params), needs)


def linear_cross_entropy(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    class_weight: Tensor | None,
    options: LossOptions,
    dtype: torch.dtype,
    loss_dtype: torch.dtype,
    workspace: int | None,
) -> Tensor:
    """What `fastmlp.autograd.linear_cross_entropy.LinearCrossEntropy` computes, as ops."""
    described = (
        options.ignore_index,
        options.reduction,
        options.label_smoothing,
        dtype,
        loss_dtype,
        workspace,
    )
    grad = torch.is_grad_enabled()
    needs = [grad and p is not None and p.requires_grad for p in (x, weight, bias)]
    return _linear_cross_entropy(x, weight, bias, target, class_weight, *described, needs)[0]
