"""A linear layer and its activation as one module."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastmlp.activations import by_name, from_module, resolve
from fastmlp.functional.linear import linear_act
from fastmlp.functional.traced import is_stand_in
from fastmlp.modules.stages import untouched


class LinearAct(nn.Linear):
    """activation(x weightᵀ + bias): ``nn.Linear`` and its activation in one kernel.

    Args:
        in_features: K.
        out_features: N.
        bias: whether there is one.
        activation: a name of `fastmlp.activations.NAMES`, an instance of its ``nn.Module``, or None.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        ValueError: an unknown activation.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        activation: str | nn.Module | None = "relu",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, device, dtype)
        resolve(activation)
        # A module is kept as a child, so that a PReLU's slopes are parameters.
        self.activation = activation
        if isinstance(activation, nn.Module):
            activation.to(device, dtype)

    def forward(self, input: Tensor) -> Tensor:
        """(..., K) to (..., N)."""
        if torch.jit.is_scripting():
            z = F.linear(input, self.weight, self.bias)
            if self.activation is None:
                return z
            elif isinstance(self.activation, str):
                return by_name(z, self.activation)
            else:
                return self.activation(z)
        else:
            return self._forward(input)

    def _forward(self, input: Tensor) -> Tensor:
        activation = self.activation
        if isinstance(activation, nn.Module) and (
            is_stand_in(input) or not (untouched(activation) and from_module(activation))
        ):
            return activation(F.linear(input, self.weight, self.bias))  # its hooks or parametrization count
        return linear_act(input, self.weight, self.bias, activation)

    def extra_repr(self) -> str:
        """As ``nn.Linear``'s, with the activation where it is not a child."""
        name = "" if isinstance(self.activation, nn.Module) else f", activation={self.activation!r}"
        return super().extra_repr() + name
