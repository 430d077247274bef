"""A narrow chain of linear layers as one kernel forward, and at most three backward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastmlp.activations import Act
from fastmlp.autograd.chain import Drops, reference_chain
from fastmlp.autograd.node import Node, left_to_torch, torch_grads
from fastmlp.backends.base import Backend


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
        ctx.backend, ctx.dtype, ctx.acts = backend, dtype, acts
        if needed:
            out_saved = None if out.name == "none" else (z if keep_z else y)
            ctx.save_for_backward(x, saved, out_saved, *params)
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

            grads = torch_grads(again, (x, *params), needs, grad)
            return None, None, None, None, *grads
        dx, of_params = ctx.backend.mlp_backward(
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
        dx = None if dx is None else dx.to(x.dtype)
        return None, None, None, None, *(g if need else None for g, need in zip([dx, *of_params], needs))
