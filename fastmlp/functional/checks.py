"""What a chain of layers must look like, and what of it the kernels take."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastmlp import backends
from fastmlp.errors import ArgumentError, DtypeError
from fastmlp.functional.layer import Layer


def check_chain(input: Tensor, layers: Sequence[Layer]) -> None:
    """Raise an error that names the argument, its shape and what was expected."""
    if input.dim() == 0:
        raise ArgumentError("input: expected (..., features), got a scalar")
    features = input.shape[-1]
    for i, (weight, bias, act, dropout) in enumerate(layers):
        name = "weight" if len(layers) == 1 else f"weight of layer {i}"
        if weight.dim() != 2 or weight.shape[1] != features:
            source = f"input {tuple(input.shape)}" if i == 0 else f"layer {i - 1}, {features} features"
            raise ArgumentError(
                f"{name}: expected (N, {features}) to fit {source}, got {tuple(weight.shape)}"
            )
        features = weight.shape[0]
        if bias is not None and bias.shape != (features,):
            raise ArgumentError(
                f"{name.replace('weight', 'bias')}: expected ({features},), got {tuple(bias.shape)}"
            )
        if act.weight is not None and act.weight.numel() not in (1, features) and input.dim() == 2:
            raise ArgumentError(
                f"activation: PReLU's weight has {act.weight.numel()} slopes for {features} features"
            )
        if act.weight is not None and act.weight.dim() > 1:
            raise ArgumentError(
                f"activation: PReLU's weight: expected () or (slopes,), got {tuple(act.weight.shape)}"
            )
        if not 0 <= dropout <= 1:
            raise ArgumentError(f"dropout of layer {i}: expected a probability in [0, 1], got {dropout}")
        for tensor, which in (
            (weight, name),
            (bias, name.replace("weight", "bias")),
            (act.weight, "PReLU's weight"),
        ):
            if tensor is not None:
                _check_kind(tensor, which, input)


def _check_kind(tensor: Tensor, name: str, input: Tensor) -> None:
    if tensor.device != input.device:
        raise RuntimeError(f"{name}: expected on {input.device} as the input, got {tensor.device}")
    if tensor.dtype == input.dtype:  # torch's own ops take, or refuse, what does not float
        return
    if not (tensor.is_floating_point() and input.is_floating_point()):
        raise DtypeError(f"input and {name}: expected floating dtypes, got {input.dtype} and {tensor.dtype}")
    # Autocast leaves float64 alone, so beside another dtype it is a mistake there too, as torch's.
    double = torch.float64 in (tensor.dtype, input.dtype)
    if double or not backends.is_autocast(input):
        raise DtypeError(f"{name}: expected {input.dtype} as the input, got {tensor.dtype}")


def fits_kernels(input: Tensor, layers: Sequence[Layer]) -> bool:
    """Whether the kernels do this. What they do not goes to torch's own ops."""
    if input.numel() == 0 or any(layer.weight.numel() == 0 or layer.dropout == 1 for layer in layers):
        return False
    for weight, bias, act, _ in layers:
        if not all(t is None or backends.readable(t) for t in (weight, bias, act.weight)):
            return False
    # PReLU's slopes lie along dimension 1, which is that of the features for a matrix alone.
    return input.dim() == 2 or all(a.weight is None or a.weight.numel() == 1 for _, _, a, _ in layers)
