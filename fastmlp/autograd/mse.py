"""The squared error as one autograd node."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor
from torch.nn import functional as F

from fastmlp.autograd.node import Node, Route, held, saves_as_given, torch_grads
from fastmlp.backends.base import Backend, SquaredError


def reference(input: Tensor, target: Tensor, weight: Tensor | None, options: SquaredError) -> Tensor:
    """The same loss by torch's own differentiable ops."""
    weighted = {} if weight is None else {"weight": weight}
    return F.mse_loss(input, target, reduction=options.reduction, **weighted)  # type: ignore[arg-type]


class Decided(NamedTuple):
    """All of a squared error but its tensors."""

    backend: Backend
    options: SquaredError


def mse_forward(
    decided: Decided, input: Tensor, target: Tensor, weight: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The loss, (M, C) or a scalar, and what it was divided by."""
    return decided.backend.mse_loss(input, target, weight, decided.options)


def mse_backward(
    decided: Decided, needs: Sequence[bool], grad: Tensor, *saved: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """One pass; the target's gradient is the negative of the input's."""
    dx = decided.backend.mse_loss_backward(grad, *saved, decided.options)  # type: ignore[call-arg, arg-type]
    return dx if needs[1] else None, -dx if needs[2] else None


class MeanSquaredError(Node):
    """input and target (M, C) to a loss: (M, C), or a scalar."""

    @staticmethod
    def forward(
        ctx: Any, route: Route[Decided], input: Tensor, target: Tensor, weight: Tensor | None
    ) -> Tensor:
        """Keeps what it is given, and one number; no difference."""
        loss, denominator = route.forward(None, (input, target, weight))
        ctx.route, ctx.saved_as_given = route, saves_as_given()
        ctx.save_for_backward(input, target, held(weight), denominator)
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """See `mse_backward`."""
        route, saved = ctx.route, ctx.saved_tensors
        upstream = route.of(grad)
        if upstream is None:
            input, target, weight, _ = saved

            def again(input: Tensor, target: Tensor) -> Tensor:
                return reference(input, target, weight, route.decided.options)

            return None, *torch_grads(again, (input, target), ctx.needs_input_grad[1:3], grad), None
        return None, *route.backward(ctx, upstream, grad, saved), None


def mse_route(decided: Decided, patience: int) -> Route[Decided]:
    """How a squared error goes."""
    return Route(decided, decided.backend, mse_forward, mse_backward, patience)
