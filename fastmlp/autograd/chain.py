"""A chain of linear layers as one autograd node.

One node for all layers lets the backward fold each activation's derivative into the matrix
product that makes its gradient, which a node per layer cannot.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fastmlp.activations import NONE, Act
from fastmlp.backends.base import Backend, Scale

#: weight, bias, PReLU's weight: the tensors of one layer.
PER_LAYER = 3


def forward_chain(
    backend: Backend,
    x: Tensor,
    params: Sequence[Tensor | None],
    acts: Sequence[Act],
    dtype: torch.dtype,
    keep: bool,
) -> tuple[Tensor, list[Tensor], list[Tensor | None]]:
    """The output, each layer's input, and what each activation's derivative needs (if ``keep``)."""
    inputs, saved = [], []
    for act, (weight, bias, slope) in zip(acts, layers_of(params)):
        act = act._replace(weight=slope)
        keep_z = keep and not act.saves_output
        y, z = backend.linear_act(x, weight, bias, act, keep_z, dtype)
        inputs.append(x)
        saved.append(None if act.name == "none" else (z if keep_z else y))
        x = y
    return x, inputs, saved


def backward_chain(
    backend: Backend,
    grad: Tensor,
    inputs: Sequence[Tensor],
    params: Sequence[Tensor | None],
    saved: Sequence[Tensor | None],
    acts: Sequence[Act],
    needs: Sequence[bool],
    dtype: torch.dtype,
    scale: Scale | None = None,
    masked: bool = False,
) -> list[Tensor | None]:
    """The gradients of the input and of every parameter, from the output's.

    Args:
        needs: what needs a gradient: the input, then every parameter.
        scale: a factor that every gradient still lacks; see `Scale`.
        masked: ``grad`` is already multiplied by the last activation's derivative.
    """
    grads: list[Tensor | None] = [None] * len(needs)
    for i in reversed(range(len(acts))):
        first = 1 + PER_LAYER * i
        if not any(needs[: first + PER_LAYER]):
            break
        weight, bias, slope = params[PER_LAYER * i : PER_LAYER * (i + 1)]
        assert weight is not None
        # The slopes' gradient needs dY, so a PReLU is undone where its gradient is read.
        fold = i > 0 and acts[i - 1].name not in ("none", "prelu")
        layer = backend.linear_backward(
            grad,
            inputs[i],
            weight,
            act=NONE if masked else acts[i]._replace(weight=slope),
            saved=None if masked else saved[i],
            previous_act=acts[i - 1] if fold else NONE,
            previous_saved=saved[i - 1] if fold else None,
            scale=scale,
            scale_input=i == 0,
            need_input=any(needs[:first]),
            need_params=any(needs[first : first + PER_LAYER]),
            bias_dtype=None if bias is None else bias.dtype,
            dtype=dtype,
        )
        grads[first : first + 2] = layer.weight, layer.bias
        if layer.slope is not None and slope is not None:
            total = layer.slope.sum().view(1) if slope.numel() == 1 else layer.slope
            grads[first + 2] = total.to(slope.dtype)
        if layer.input is None:
            break
        grad, masked = layer.input, fold
        if i == 0:
            grads[0] = grad.to(inputs[0].dtype)
    return [grad if need else None for grad, need in zip(grads, needs)]


def layers_of(params: Sequence[Tensor | None]) -> list[tuple[Tensor, Tensor | None, Tensor | None]]:
    """The flat parameters, a layer at a time."""
    return list(zip(params[0::PER_LAYER], params[1::PER_LAYER], params[2::PER_LAYER]))  # type: ignore[arg-type]


def reference_chain(
    x: Tensor, params: Sequence[Tensor | None], acts: Sequence[Act], dtype: torch.dtype
) -> Tensor:
    """The same chain by torch's own differentiable ops: what a double backward goes through."""
    for act, (weight, bias, slope) in zip(acts, layers_of(params)):
        z = F.linear(x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype))
        x = act._replace(weight=None if slope is None else slope.to(dtype))(z)
    return x


def differentiable_grads(
    output: Tensor, inputs: Sequence[Tensor | None], needs: Sequence[bool], grad: Tensor
) -> list[Tensor | None]:
    """Gradients that can be differentiated again, in the places of ``needs``."""
    wanted = [t for t, need in zip(inputs, needs) if need and t is not None]
    found = iter(torch.autograd.grad(output, wanted, grad, create_graph=True, allow_unused=True))
    return [next(found) if need and t is not None else None for t, need in zip(inputs, needs)]


class Chain(torch.autograd.Function):
    """X (M, K) through a chain of layers to Y (M, N)."""

    @staticmethod
    def forward(
        ctx: Any, backend: Backend, dtype: torch.dtype, acts: Sequence[Act], x: Tensor, *params: Tensor | None
    ) -> Tensor:
        """``params`` holds weight, bias and PReLU weight of each layer; ``acts`` hold no tensors."""
        needed = any(ctx.needs_input_grad)
        y, inputs, saved = forward_chain(backend, x, params, acts, dtype, keep=needed)
        ctx.backend, ctx.dtype, ctx.acts = backend, dtype, acts
        if needed:
            ctx.save_for_backward(*inputs, *saved, *params)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """One launch a layer: dX with the previous f' in its epilogue, beside dW and db."""
        depth, tensors = len(ctx.acts), ctx.saved_tensors
        inputs, saved, params = tensors[:depth], tensors[depth : 2 * depth], tensors[2 * depth :]
        needs = ctx.needs_input_grad[3:]
        if torch.is_grad_enabled():
            output = reference_chain(inputs[0], params, ctx.acts, ctx.dtype)
            grads = differentiable_grads(output, (inputs[0], *params), needs, grad)
        else:
            grads = backward_chain(ctx.backend, grad, inputs, params, saved, ctx.acts, needs, ctx.dtype)
        return None, None, None, *grads
