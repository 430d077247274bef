"""``fastmlp::cross_entropy``: softmax cross-entropy in one pass over the logits each way."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastmlp import backends
from fastmlp.autograd.cross_entropy import torch_gradient
from fastmlp.autograd.node import transformed
from fastmlp.backends.base import LossOptions
from fastmlp.ops.register import differentiable, op

_OPTIONS = "SymInt ignore_index, str reduction, float label_smoothing, float z_loss"


def _fake(logits: Tensor, target: Tensor, weight: Tensor | None, *options: Any) -> tuple[Tensor, ...]:
    n, _, d = logits.shape
    loss, total = ((n, d), 0) if options[1] == "none" else ((), ())
    stats = logits.new_empty(3, n * d, dtype=torch.float32)
    return logits.new_empty(loss), stats, stats.new_empty(total)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    logits, target, weight, *ctx.options = inputs
    _, stats, denominator = output
    ctx.mark_non_differentiable(stats, denominator)
    ctx.save_for_backward(logits, target, weight, stats, denominator)


def _gradients(ctx: Any, grad: Tensor, *_: Tensor | None) -> list[Tensor | None]:
    logits, target, weight, stats, denominator = ctx.saved_tensors
    if transformed(grad):
        return [torch_gradient(grad, logits, target, weight, LossOptions(*ctx.options))]
    return [_backward(grad, logits, target, weight, stats, denominator, *ctx.options)]


@differentiable(
    "cross_entropy",
    f"(Tensor logits, Tensor target, Tensor? weight, {_OPTIONS}) -> (Tensor, Tensor, Tensor)",
    _fake,
    _setup,
    _gradients,
)
def _cross_entropy(
    logits: Tensor, target: Tensor, weight: Tensor | None, *options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss, and what the backward needs: statistics of the rows, and what the loss was divided by.

    Args:
        logits: (N, C, D), no size 0.
        target: (N, D) class indices or (N, C, D) probabilities.
        weight: (C,).
        options: the fields of `LossOptions`.
    """
    loss, stats, denominator = backends.kernels(logits).cross_entropy(
        logits, target, weight, LossOptions(*options)
    )
    # Which rows' own losses are not divided by: a result must hold no memory that nobody wrote.
    return loss, stats, stats.new_empty(0) if loss.dim() else denominator


def _fake_grad(grad: Tensor, logits: Tensor, *others: Any) -> Tensor:
    return torch.empty_like(logits)


@op(
    "cross_entropy_backward",
    "(Tensor grad, Tensor logits, Tensor target, Tensor? weight, Tensor stats, Tensor denominator, "
    f"{_OPTIONS}) -> Tensor",
    _fake_grad,
)
def _backward(
    grad: Tensor,
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    stats: Tensor,
    denominator: Tensor,
    *options: Any,
) -> Tensor:
    """The logits' gradient, from the loss' ``grad``."""
    out = torch.empty_like(logits)
    backends.kernels(logits).cross_entropy_backward(
        grad, logits, target, weight, stats, denominator, out, LossOptions(*options)
    )
    return out


def cross_entropy(logits: Tensor, target: Tensor, weight: Tensor | None, options: LossOptions) -> Tensor:
    """What `fastmlp.autograd.cross_entropy.CrossEntropy` computes, as ops."""
    return _cross_entropy(logits, target, weight, *options)[0]
