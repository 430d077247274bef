"""torchvision.ops.MLP, fused."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from numbers import Integral

import torch
from torch import Tensor, nn

from fastmlp.modules.loss import CrossEntropyLoss, MSELoss
from fastmlp.modules.sequential import Sequential, closed, run
from fastmlp.modules.stages import FORWARDS, written


@written
class MLP(Sequential):
    """``torchvision.ops.MLP``: linear layers with norm, activation and dropout between them.

    Children and ``state_dict`` keys are torchvision's, so checkpoints load both ways. The input is
    (..., in_channels), with ``flatten`` (N, ...) with in_channels elements per row; the output is
    (..., hidden_channels[-1]). Source: ``torchvision.ops.MLP``.

    Args:
        in_channels: features of the input.
        hidden_channels: the widths of the layers, the last of which is the output.
        norm_layer: called with a hidden width; None for no norm.
        activation_layer: called without arguments, or with ``inplace``; None for no activation.
        inplace: passed on to activation and dropout where it is not None.
        bias: whether the linear layers have one.
        dropout: the probability of the dropout layers.
        device: of the parameters.
        dtype: of the parameters.
        flatten: flatten the input from dimension 1 on, as an ``nn.Flatten`` in front would.

    Raises:
        TypeError: ``hidden_channels`` is not a sequence.
        ValueError: no widths, or one that is not a positive integer.
    """

    #: Not a child: it would shift the numbers of torchvision's keys.
    flatten = False

    def __init__(
        self,
        in_channels: int,
        hidden_channels: Sequence[int],
        norm_layer: Callable[..., nn.Module] | None = None,
        activation_layer: Callable[..., nn.Module] | None = nn.ReLU,
        inplace: bool | None = None,
        bias: bool = True,
        dropout: float = 0.0,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        flatten: bool = False,
    ) -> None:
        if not isinstance(hidden_channels, Iterable):
            raise TypeError(f"hidden_channels: expected a sequence of widths, got {hidden_channels!r}")
        widths = [in_channels, *hidden_channels]
        if len(widths) < 2 or not all(isinstance(width, Integral) and width >= 1 for width in widths):
            raise ValueError(f"in_channels, hidden_channels: expected positive widths, got {widths}")
        params = {} if inplace is None else {"inplace": inplace}
        layers: list[nn.Module] = []
        for i in range(len(widths) - 1):
            hidden = i < len(widths) - 2
            layers.append(nn.Linear(widths[i], widths[i + 1], bias, device, dtype))
            if hidden and norm_layer is not None:
                layers.append(norm_layer(widths[i + 1]).to(device, dtype))
            if hidden and activation_layer is not None:
                layers.append(activation_layer(**params).to(device, dtype))
            layers.append(nn.Dropout(dropout, **params))
        super().__init__(*layers)
        self.flatten = flatten

    def forward(self, input: Tensor) -> Tensor:
        """(..., in_channels), or (N, ...) with ``flatten``, to (..., hidden_channels[-1])."""
        if torch.jit.is_scripting():
            if self.flatten:
                input = input.flatten(1)
            for module in self:
                input = module(input)
            return input
        else:
            input = input.flatten(1) if self.flatten else input
            return run(self, input)

    def _closed(
        self, input: Tensor, target: Tensor, loss: CrossEntropyLoss | MSELoss
    ) -> tuple[Tensor, Tensor] | None:
        if type(self).forward is not FORWARDS[MLP]:
            return None
        return closed(self, input.flatten(1) if self.flatten else input, target, loss)
