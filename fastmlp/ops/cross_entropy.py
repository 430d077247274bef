"""``fastmlp::cross_entropy``: softmax cross-entropy in one pass over the logits each way."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastmlp import backends
from fastmlp.autograd.cross_entropy import torch_gradient
from fastmlp.autograd.node import transformed
from fastmlp.backends.base import LossOptions
from fastmlp.ops.register import differentiable, op, recorded

_OPTIONS = "SymInt ignore_index, str reduction, float label_smoothing, float z_loss"


def _fake(logits: Tensor, target: Tensor, weight: Tensor | None, *options: Any) -> tuple[Tensor, ...]:
    n, _, d = logits.shape
    loss, stats = ((n, d), (3, n * d)) if options[1] == "none" else ((), (3 * n * d + 1,))
    return logits.new_empty(loss), logits.new_empty(stats, dtype=torch.float32)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    logits, target, weight, *ctx.options = inputs
    _, stats = output
    ctx.mark_non_differentiable(stats)
    ctx.save_for_backward(logits, target, weight, stats)


def _gradients(ctx: Any, grad: Tensor, *_: Tensor | None) -> list[Tensor | None]:
    logits, target, weight, stats = ctx.saved_tensors
    if transformed(grad):
        return [torch_gradient(grad, logits, target, weight, LossOptions(*ctx.options))]
    return [_backward(grad, logits, target, weight, stats, *ctx.options)]


@differentiable(
    "cross_entropy",
    f"(Tensor logits, Tensor target, Tensor? weight, {_OPTIONS}) -> (Tensor, Tensor)",
    _fake,
    _setup,
    _gradients,
)
@recorded
def _cross_entropy(
    logits: Tensor, target: Tensor, weight: Tensor | None, *options: Any
) -> tuple[Tensor, Tensor]:
    """The loss, and what the backward needs: see `fastmlp.kernels.loss.cross_entropy.forward`.

    Args:
        logits: (N, C, D), no size 0.
        target: (N, D) class indices or (N, C, D) probabilities.
        weight: (C,).
        options: the fields of `LossOptions`.
    """
    return backends.kernels(logits).cross_entropy(logits, target, weight, LossOptions(*options))[:2]


def _fake_grad(grad: Tensor, logits: Tensor, *others: Any) -> Tensor:
    return torch.empty_like(logits)


@op(
    "cross_entropy_backward",
    f"(Tensor grad, Tensor logits, Tensor target, Tensor? weight, Tensor stats, {_OPTIONS}) -> Tensor",
    _fake_grad,
)
@recorded
def _backward(
    grad: Tensor,
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    stats: Tensor,
    *options: Any,
) -> Tensor:
    """The logits' gradient, from the loss' ``grad``."""
    out = torch.empty_like(logits)
    backends.kernels(logits).cross_entropy_backward(
        grad, logits, target, weight, stats, None, out, LossOptions(*options)
    )
    return out


def cross_entropy(logits: Tensor, target: Tensor, weight: Tensor | None, options: LossOptions) -> Tensor:
    """What `fastmlp.autograd.cross_entropy.CrossEntropy` computes, as ops."""
    return _cross_entropy(logits, target, weight, *options)[0]
