"""One linear layer on a CPU: its products in memory that is kept, or oneDNN's where that is faster.

oneDNN's products pay as `fastmlp.backends.onednn` says, in float32 for the input's gradient too (0.6, 1.0,
1.13, 1.08 and 1.1 times the speed of ``mm`` in the same order); for the weight's gradient never.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from fastmlp.activations import Act
from fastmlp.backends import onednn
from fastmlp.functional.layer import Layer

#: Up to so many outputs are written as columns. Time of rows over that of columns in float32 and bfloat16,
#: by batch x inputs x outputs: 1.4 and 1.4 at 256x256x10, 1.2 and 2.1 at 1024x1024x10. The softmax too is
#: faster along columns.
FEW = 32


class Rows:
    """Memory for the most rows so far; fewer take the front of it."""

    def __init__(self, features: int, dtype: torch.dtype, *, columns: bool = False) -> None:
        self._memory = torch.empty(0, features, dtype=dtype, device="cpu")
        self._columns = columns
        self._rows, self._front = 0, self._memory

    def take(self, rows: int) -> Tensor:
        """(rows, features) with whatever was last written there: contiguous, or the transpose of it."""
        if rows != self._rows:
            features = self._memory.shape[1]
            if len(self._memory) < rows:
                self._memory = self._memory.new_empty(rows, features)
            front = self._memory[:rows]
            self._rows, self._front = rows, front.view(features, rows).t() if self._columns else front
        return self._front


class CpuLayer:
    """One layer of an executor: forward, the input's gradient, and the parameters' gradients added up."""

    def __init__(self, layer: Layer, dtype: torch.dtype) -> None:
        self.master, self.master_bias, self.act, _ = layer
        self.dtype = dtype
        self._casts = dtype != self.master.dtype
        self._weight, self._bias = self.master, self.master_bias
        if self._casts:
            self._weight = torch.empty_like(self.master, dtype=dtype)
            self._weight_grad = torch.empty_like(self._weight)
            self._bias = None if self._bias is None else torch.empty_like(self._bias, dtype=dtype)
        self._bias_grad = self._weight.new_empty(len(self._weight))
        self._few = len(self._weight) <= FEW
        outputs, inputs = self.master.shape
        self._outputs, self._inputs = Rows(outputs, dtype, columns=self._few), Rows(inputs, dtype)
        self._forward_by_onednn = self._input_grad_by_onednn = False

    def resize(self, rows: int) -> None:
        """Get ready for batches of ``rows``."""
        work = rows * self.master.numel()
        pays = onednn.PRODUCT is not None and work >= onednn.LEAST_WORK.get(self.dtype, math.inf)
        columns = self._few and self.dtype == torch.bfloat16  # which are faster than either's rows
        self._forward_by_onednn = pays and self.dtype == onednn.FORWARD_IN_STEPS and not columns
        self._input_grad_by_onednn = pays and self.dtype == onednn.INPUT_GRAD_IN_STEPS
        if not self._forward_by_onednn:  # which returns memory of its own
            self._z = self._outputs.take(rows)
        if not self._input_grad_by_onednn:
            self._dx = self._inputs.take(rows)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The layer's output, and what its activation's derivative needs."""
        weight, bias, act = self._weight, self._bias, self.act
        if self._casts:
            weight.copy_(self.master)
            if bias is not None and self.master_bias is not None:
                bias.copy_(self.master_bias)
        z = self._product(x, weight, bias)
        if act.name == "none":
            return z, z
        y = act.write_over(z)
        return y, y if act.saves_output else z

    def _product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self._forward_by_onednn:
            return _product(x, weight, bias)
        z = self._z
        if self._few:
            if bias is None:
                torch.mm(weight, x.t(), out=z.t())
            else:
                torch.addmm(bias.unsqueeze(1), weight, x.t(), out=z.t())
        elif bias is None:
            torch.mm(x, weight.t(), out=z)
        else:
            torch.addmm(bias, x, weight.t(), out=z)
        return z

    def input_grad(self, dz: Tensor, previous: Act, saved: Tensor) -> Tensor:
        """The previous layer's dZ: dZ weight, times its f'(``saved``)."""
        if self._input_grad_by_onednn:
            dx = _product(dz, self._weight.t(), None)
        else:
            dx = torch.mm(dz, self._weight, out=self._dx)
        if previous.name == "none":
            return dx
        backward = _BACKWARD.get(previous.name)
        return dx.mul_(previous.derivative(saved)) if backward is None else backward(dx, saved, previous)

    def add_weight_grad(self, dz: Tensor, x: Tensor, out: Tensor, beta: float, alpha: float) -> None:
        """``out`` becomes beta * out + alpha * dZᵀ x; with beta 0 whatever it held."""
        if self._casts:
            _add(torch.mm(dz.t(), x, out=self._weight_grad), out, beta, alpha)
        else:
            out.addmm_(dz.t(), x, beta=beta, alpha=alpha)

    def add_bias_grad(self, dz: Tensor, out: Tensor, beta: float, alpha: float) -> None:
        """``out`` becomes beta * out + alpha * Σ dZ over the rows; with beta 0 whatever it held."""
        _add(torch.sum(dz, 0, out=self._bias_grad), out, beta, alpha)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    assert onednn.PRODUCT is not None
    return onednn.PRODUCT(x, weight, bias, "none", [], "")


def _add(grad: Tensor, out: Tensor, beta: float, alpha: float) -> None:
    if beta == 0:
        out.copy_(grad).mul_(alpha)
    else:
        (out if beta == 1 else out.mul_(beta)).add_(grad, alpha=alpha)


_relu = torch.ops.aten.threshold_backward.grad_input
_sigmoid = torch.ops.aten.sigmoid_backward.grad_input
_tanh = torch.ops.aten.tanh_backward.grad_input
_leaky_relu = torch.ops.aten.leaky_relu_backward.grad_input
_gelu = torch.ops.aten.gelu_backward.grad_input
_silu = torch.ops.aten.silu_backward.grad_input

#: dY * f'(saved) written over dY, by the very ops of ATen's autograd.
_BACKWARD: dict[str, Callable[[Tensor, Tensor, Act], Tensor]] = {
    "relu": lambda g, y, _: _relu(g, y, 0, grad_input=g),
    "leaky_relu": lambda g, kept, act: _leaky_relu(g, kept, act.slope, act.saves_output, grad_input=g),
    "sigmoid": lambda g, y, _: _sigmoid(g, y, grad_input=g),
    "tanh": lambda g, y, _: _tanh(g, y, grad_input=g),
    "gelu": lambda g, z, _: _gelu(g, z, grad_input=g),
    "gelu_tanh": lambda g, z, _: _gelu(g, z, approximate="tanh", grad_input=g),
    "silu": lambda g, z, _: _silu(g, z, grad_input=g),
}
