"""A narrow chain of linear layers as one kernel forward, and at most three backward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastmlp.activations import Act
from fastmlp.autograd.chain import PER_LAYER, Drops, params_read, reference_chain
from fastmlp.autograd.node import Node, left_to_torch, torch_grads
from fastmlp.autograd.saved import Owners, aliases, saved_output
from fastmlp.backends.base import Backend, NetGrads


class WholeNet(Node):
    """X (M, K) through a whole network to Y (M, N)."""

    @staticmethod
    def forward(
        ctx: Any,
        backend: Backend,
        dtype: torch.dtype,
        acts: Sequence[Act],
        recompute: bool,
        x: Tensor,
        *params: Tensor | None,
    ) -> Tensor:
        """``params`` and ``acts`` as in `Chain`; with ``recompute`` nothing but the input is kept."""
        needed = any(ctx.needs_input_grad)
        out = acts[-1]
        keep_z = needed and not out.saves_output
        y, saved, z = backend.mlp(x, params, acts, save=needed and not recompute, keep_z=keep_z, dtype=dtype)
        if needed:
            ctx.backend, ctx.dtype, ctx.acts, ctx.owners = backend, dtype, acts, Owners(params)
            out_saved = None if out.name == "none" else (z if keep_z else y)
            out_saved, ctx.output = saved_output(y, out_saved, out, False)
            read = [recompute or reads for reads in params_read(ctx.needs_input_grad[4:])]
            ctx.save_for_backward(x, saved, out_saved, *aliases(params, read))
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """One launch for the chain of dZ, one for every dW and db, one to sum a long batch's splits."""
        x, saved, out_saved, *params = ctx.saved_tensors
        needs = ctx.needs_input_grad[4:]
        if left_to_torch(grad):
            none = Drops((0.0,) * len(ctx.acts), None)

            def again(x: Tensor, *params: Tensor | None) -> Tensor:
                return reference_chain(ctx.backend, x, params, ctx.acts, ctx.dtype, none)

            grads = torch_grads(again, (x, *ctx.owners.in_graph(params)), needs, grad)
            return None, None, None, None, *grads
        if ctx.output is not None and ctx.output.is_written:
            values = ctx.owners.values(params)
            out_saved = ctx.backend.mlp(x, values, ctx.acts, save=False, keep_z=False, dtype=ctx.dtype)[0]
        found = ctx.backend.mlp_backward(
            grad,
            x,
            params,
            ctx.acts,
            saved,
            out_saved,
            need_input=needs[0],
            need_params=any(needs[1:]),
            dtype=ctx.dtype,
        )
        dx = None if found.input is None else found.input.to(x.dtype)
        grads = [dx, *split(ctx.backend, found, params)]
        return None, None, None, None, *(g if need else None for g, need in zip(grads, needs))


def split(backend: Backend, found: NetGrads, params: Sequence[Tensor | None]) -> list[Tensor | None]:
    """The gradient of each parameter: views of the flat ones, but for slopes, which are few."""
    grads: list[Tensor | None] = [None] * len(params)
    if found.params is None:
        return grads
    weights: Sequence[Tensor] = params[0::PER_LAYER]  # type: ignore[assignment]
    layout = backend.net_layout([weights[0].shape[1], *(w.shape[0] for w in weights)])
    for i, weight in enumerate(weights):
        first, (n, _) = PER_LAYER * i, weight.shape
        start = layout.params[i]
        of_bias = start + weight.numel()
        grads[first] = found.params[start:of_bias].view(weight.shape)
        grads[first + 1] = found.params[of_bias : of_bias + n]
        slope = params[first + 2]
        if slope is not None and found.slopes is not None:
            each = found.slopes[layout.saved[i] : layout.saved[i] + n]
            grads[first + 2] = (each.sum().view(1) if slope.numel() == 1 else each).to(slope.dtype)
    return grads
