"""``fastmlp::cross_entropy``: softmax cross-entropy in one pass over the logits each way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastmlp import backends
from fastmlp.autograd.cross_entropy import Decided, loss_backward, loss_forward, torch_gradient
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
    *given, stats = ctx.saved_tensors
    if transformed(grad):
        return [torch_gradient(LossOptions(*ctx.options), grad, *given)]
    return [_backward(grad, *given, stats, *ctx.options)]


def _decided(logits: Tensor, options: Sequence[Any]) -> Decided:
    return Decided(backends.kernels(logits), LossOptions(*options), inplace=False)


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
    return loss_forward(_decided(logits, options), logits, target, weight)[:2]


@op(
    "cross_entropy_backward",
    f"(Tensor grad, Tensor logits, Tensor target, Tensor? weight, Tensor stats, {_OPTIONS}) -> Tensor",
    lambda grad, logits, *_: torch.empty_like(logits),
)
@recorded
def _backward(grad: Tensor, logits: Tensor, target: Tensor, *others: Any) -> Tensor:
    """The logits' gradient, from the loss' ``grad``."""
    weight, stats, *options = others
    return loss_backward(_decided(logits, options), (), grad, logits, target, weight, stats, None)


def cross_entropy(logits: Tensor, target: Tensor, weight: Tensor | None, options: LossOptions) -> Tensor:
    """What `fastmlp.autograd.cross_entropy.CrossEntropy` computes, as ops."""
    return _cross_entropy(logits, target, weight, *options)[0]
