"""The squared error as one autograd node."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional as F

from fastmlp.autograd.node import Node, held, left_to_torch, torch_grads
from fastmlp.backends.base import Backend, SquaredError


def reference(input: Tensor, target: Tensor, weight: Tensor | None, options: SquaredError) -> Tensor:
    """The same loss by torch's own differentiable ops."""
    weighted = {} if weight is None else {"weight": weight}
    return F.mse_loss(input, target, reduction=options.reduction, **weighted)  # type: ignore[arg-type]


class MeanSquaredError(Node):
    """input and target (M, C) to a loss: (M, C), or a scalar."""

    @staticmethod
    def forward(
        ctx: Any,
        backend: Backend,
        options: SquaredError,
        input: Tensor,
        target: Tensor,
        weight: Tensor | None,
    ) -> Tensor:
        """Keeps what it is given, and one number; no difference."""
        loss, denominator = backend.mse_loss(input, target, weight, options)
        ctx.backend, ctx.options = backend, options
        ctx.save_for_backward(input, target, held(weight), denominator)
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """One pass; the target's gradient is the negative of the input's."""
        input, target, weight, denominator = ctx.saved_tensors
        needs = ctx.needs_input_grad[2:4]
        if left_to_torch(grad):

            def again(input: Tensor, target: Tensor) -> Tensor:
                return reference(input, target, weight, ctx.options)

            return None, None, *torch_grads(again, (input, target), needs, grad), None
        dx = ctx.backend.mse_loss_backward(grad, input, target, weight, denominator, ctx.options)
        return None, None, dx if needs[0] else None, -dx if needs[1] else None, None
