"""A first layer of integers: what they stand for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fastmlp.backends.base import Quantized


class Dequantize(nn.Module):
    """values * scale + shift, for features that are kept as uint8 or int8.

    As the first child of a `fastmlp.Sequential` (an ``nn.Flatten`` may stand before it, or, where scale and
    shift are single numbers, after it) and with an ``nn.Linear`` next, it costs nothing on a GPU: the
    layer's kernels read the integers. `fastmlp.fit` and `TrainStep` then take integer features as they are,
    without their own division by 255.

    Args:
        scale: a number, or one for each feature, (K,).
        shift: likewise; None for none, which leaves the products exact and keeps no buffer.
        dtype: of the buffers and of the output, which ``to``, ``half`` and ``double`` change as they do a
            layer's parameters; None for ``torch.get_default_dtype()``.
        device: of the buffers.

    Raises:
        ValueError: scale or shift have more than one dimension.
        TypeError: ``dtype`` is not floating.
    """

    if TYPE_CHECKING:  # torch.jit.script reads what a class is annotated with, and no strings
        scale: Tensor
        shift: Tensor | None

    def __init__(
        self,
        scale: float | Tensor = 1.0,
        shift: float | Tensor | None = None,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        dtype = dtype or torch.get_default_dtype()
        if not dtype.is_floating_point:
            raise TypeError(f"dtype: expected a floating dtype, got {dtype}")
        for name, number in (("scale", scale), ("shift", shift)):
            if number is not None and not isinstance(number, Tensor):
                number = torch.as_tensor(number, device=device, dtype=dtype)
            buffer = None if number is None else number.detach().to(device, dtype, copy=True)
            if buffer is not None and buffer.dim() > 1:
                raise ValueError(f"{name}: expected a number or (features,), got {tuple(buffer.shape)}")
            self.register_buffer(name, buffer)

    def forward(self, input: Tensor) -> Tensor:
        """(..., K) integers to (..., K) of the buffers' dtype."""
        x = input.to(self.scale.dtype) * self.scale
        return x if self.shift is None else x + self.shift

    def quantized(self, values: Tensor) -> Quantized:
        """The same as an argument of `fastmlp.functional`, with nothing computed."""
        return Quantized(values, self.scale, self.shift)

    @property
    def is_uniform(self) -> bool:
        """Whether every feature has the same scale and shift, so that they may be flattened before."""
        return self.scale.numel() == 1 and (self.shift is None or self.shift.numel() == 1)

    def extra_repr(self) -> str:
        """Scale and shift, or how many there are."""

        def of(tensor: Tensor | None) -> str:
            if tensor is None:
                return "None"
            return str([*tensor.shape] if tensor.numel() != 1 or tensor.is_meta else tensor.item())

        return f"scale={of(self.scale)}, shift={of(self.shift)}"


def dequantizes(model: nn.Module) -> bool:
    """Whether ``model`` says itself what integers stand for."""
    return any(isinstance(module, Dequantize) for module in model.modules())
