"""The torch backend: the same interface in plain torch, on any device and in float64 too.

On a CPU the functional layer calls ATen with ATen's autograd instead, which is faster (a Python
Function never pays there). This is the backend of the Functions where they do pay on a CPU, and
the statement of what the kernels compute that their tests run against.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from fastmlp.activations import NONE, Act
from fastmlp.backends.base import Backend, LinearGrads, Scale


class TorchBackend(Backend):
    """ATen's ops, one after another."""

    name = "torch"

    def linear_act(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, act: Act, keep_z: bool, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor | None]:
        """See `Backend.linear_act`."""
        z = F.linear(x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype))
        return (act(z), z) if keep_z else (act.write_over(z), None)

    def linear_backward(
        self,
        grad: Tensor,
        x: Tensor,
        weight: Tensor,
        *,
        act: Act = NONE,
        saved: Tensor | None = None,
        previous_act: Act = NONE,
        previous_saved: Tensor | None = None,
        scale: Scale | None = None,
        scale_input: bool = False,
        need_input: bool = True,
        need_params: bool = True,
        bias_dtype: torch.dtype | None = None,
        dtype: torch.dtype,
    ) -> LinearGrads:
        """See `Backend.linear_backward`."""
        dslope = None
        if saved is not None:
            if act.weight is not None and need_params:
                dslope = torch.where(saved > 0, 0.0, grad * saved).sum(0)
            grad = grad * act.derivative(saved)
        factor = 1.0 if scale is None else scale.numerator / scale.denominator
        dx = dw = db = None
        if need_input:
            dx = grad.to(dtype) @ weight.to(dtype)
            if previous_saved is not None:
                dx = dx * previous_act.derivative(previous_saved)
            if scale_input:
                dx = dx * factor
        if need_params:
            dw = (grad.to(dtype).t() @ x.to(dtype)).to(weight.dtype) * factor
            db = None if bias_dtype is None else grad.sum(0).to(bias_dtype) * factor
            dslope = None if dslope is None else dslope * factor
        return LinearGrads(dx, dw, db, dslope)
