"""The cross-entropy of a CPU: the forward already writes the gradient.

ATen keeps the log-softmax, fills a gradient of it with zeros and writes the logits' gradient: three
buffers of the logits' size, each of fresh memory. Here the softmax becomes the gradient in the one
buffer that the first backward hands out; a later backward computes it again.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fastmlp.autograd.cross_entropy import reference_loss
from fastmlp.autograd.node import Node, Once, Unchanged, held, left_to_torch, torch_grads
from fastmlp.backends.base import LossOptions
from fastmlp.backends.torch_backend import TorchBackend


class CpuCrossEntropy(Node):
    """logits (B, C) and class indices (B,) to a scalar, or to (B,) for reduction "none"."""

    @staticmethod
    def forward(
        ctx: Any,
        backend: TorchBackend,
        options: LossOptions,
        logits: Tensor,
        target: Tensor,
        weight: Tensor | None,
    ) -> Tensor:
        """Keeps the gradient for an upstream of 1."""
        loss, grad = backend.cross_entropy_with_grad(logits, target, weight, options)
        ctx.first, ctx.constants = Once(grad), Unchanged(target=target, weight=weight)
        ctx.backend, ctx.options = backend, options
        # For a second or a double backward; the first does not look at them, and like torch's does not
        # mind logits that were written over.
        ctx.save_for_backward(logits, held(target), held(weight))
        return loss

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        """The kept gradient, times the upstream one."""
        if left_to_torch(upstream):
            logits, target, weight = ctx.saved_tensors

            def again(logits: Tensor) -> Tensor:
                return reference_loss(logits, target, weight, ctx.options)

            (grad,) = torch_grads(again, (logits,), (True,), upstream)
            return None, None, grad, None, None
        ctx.constants.check()
        grad = ctx.first.take()
        if grad is None:
            grad = ctx.backend.cross_entropy_with_grad(*ctx.saved_tensors, ctx.options)[1]
        factor = upstream.unsqueeze(-1) if ctx.options.reduction == "none" else upstream
        is_one = bool((upstream == 1).all())
        return None, None, grad if is_one else grad.mul_(factor), None, None
