"""``fastmlp::linear_cross_entropy``: linear layer and softmax cross-entropy, without the logits in memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastmlp import backends
from fastmlp.autograd.linear_cross_entropy import Grads, LinearLoss, Work, torch_gradients
from fastmlp.autograd.node import transformed
from fastmlp.backends.base import LossOptions, Scale
from fastmlp.ops.register import differentiable, op

#: What both ops are given: x (N, K), no size 0; weight (C, D, K); bias (C, D); class indices (N, D) or
#: probabilities (N, C, D); class_weight (C,); what is computed; which of x, weight and bias need a gradient.
_GIVEN = (
    "Tensor x, Tensor weight, Tensor? bias, Tensor target, Tensor? class_weight, "
    "SymInt ignore_index, str reduction, float label_smoothing, ScalarType dtype, ScalarType loss_dtype, "
    "SymInt? workspace, bool[] needs"
)


class _Given:
    """The ops' arguments."""

    def __init__(self, x: Tensor, weight: Tensor, bias: Tensor | None, *others: Any) -> None:
        self.params = x, weight, bias
        self.target, self.class_weight, ignore_index, reduction, label_smoothing, *rest = others
        dtype, loss_dtype, self.workspace, self.needs = rest
        options = LossOptions(ignore_index, reduction, label_smoothing)
        #: Without tiles, which depend on sizes: a trace must not ask for these.
        self.job = LinearLoss(backends.kernels(x), options, dtype, loss_dtype)

    def work(self) -> tuple[Work, Tensor]:
        """What the kernels are to do, and what the loss is divided by."""
        x, weight, _ = self.params
        job = self.job.tiled(x, weight, self.target, any(self.needs[1:]), self.workspace)
        return Work.of(job, self.params, self.target, self.class_weight).divided()

    def needed(self, values: Sequence[Tensor | None]) -> list[Tensor]:
        """Those of x, weight and bias, or of their gradients, that are needed."""
        return [t for t, need in zip(values, self.needs) if need and t is not None]

    def like_needed(self) -> list[Tensor]:
        """Contiguous tensors like the gradients."""
        return [p.new_empty(p.shape) for p in self.needed(self.params)]


def _fake(*args: Any) -> list[Tensor]:
    given = _Given(*args)
    x, weight, _ = given.params
    shape = () if given.job.is_reduced else (x.shape[0], weight.shape[1])
    formed = given.like_needed() if given.job.forms_in_forward else []
    return [x.new_empty(shape, dtype=given.job.loss_dtype), *formed]


def _setup(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    ctx.numbers = inputs[5:]
    ctx.save_for_backward(*inputs[:5], *output[1:])
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, upstream: Tensor | None, *_: Tensor | None) -> list[Tensor | None]:
    if upstream is None:
        return []
    args, kept = (*ctx.saved_tensors[:5], *ctx.numbers), ctx.saved_tensors[5:]
    given = _Given(*args)
    job, params, needs = given.job, given.params, given.needs
    if transformed(upstream):
        grads = torch_gradients(job, needs, upstream, params, given.target, given.class_weight)
    else:
        if job.forms_in_forward:
            factor = upstream.to(job.wide).view(1)  # not a scalar, which would be rounded to 16 bits first
            some = ((grad * factor).to(grad.dtype) for grad in kept)
        else:
            some = iter(_backward(upstream, *args))
        grads = [next(some) if need else None for need in needs]
    return grads if params[2] is not None else grads[:2]


@differentiable("linear_cross_entropy", f"({_GIVEN}) -> Tensor[]", _fake, _setup, _gradients)
def _linear_cross_entropy(*args: Any) -> list[Tensor]:
    """The loss; and where the forward forms them the gradients that are needed, for an upstream one of 1.

    A graph that runs the forward runs the backward too, so all are formed here, while the logits are at hand.
    """
    given = _Given(*args)
    work, total = given.work()
    loss, share, grads, stats = work.loss_and_grads(total, given.needs)
    if not given.job.forms_in_forward:
        return [loss]
    missing = grads.missing(given.needs)
    if any(missing):
        grads = grads.or_else(work.missing_grads(stats, share, missing))
    return [loss, *given.needed(grads)]


@op(
    "linear_cross_entropy_backward",
    f"(Tensor grad, {_GIVEN}) -> Tensor[]",
    lambda _, *args: _Given(*args).like_needed(),
)
def _backward(grad: Tensor, *args: Any) -> list[Tensor]:
    """Those gradients that are needed, where the forward forms none, from the loss' (N, D) or ()."""
    given = _Given(*args)
    work, total = given.work()
    _, stats = work.losses(None, Grads())
    upstream = grad.to(total.dtype)
    if given.job.is_reduced:
        upstream = upstream * Scale(torch.ones_like(total), total).value()
    return given.needed(work.missing_grads(stats, upstream, given.needs))


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
    grad, numbers = torch.is_grad_enabled(), (*options[:3], dtype, loss_dtype, workspace)
    needs = [grad and p is not None and p.requires_grad for p in (x, weight, bias)]
    return _linear_cross_entropy(x, weight, bias, target, class_weight, *numbers, needs)[0]
