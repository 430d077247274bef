"""The one table of activations, which everything else reads.

A row ties together a name (also the kernels' id), its ``nn.Module``, torch's function, and
the derivative with what it is computed from. A new activation is one row here and its two
branches in ``kernels/common/activations.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Row(NamedTuple):
    """One row of the table."""

    name: str  # what a user writes, and the kernels' id
    module: type[nn.Module]
    function: Callable[[Tensor, Any], Tensor]  # f(z, slope)
    derivative: Callable[[Tensor, Any], Tensor]  # f'(saved, slope)
    saves_output: bool  # f' follows from f(z), so z need not be kept
    inplace: Callable[[Tensor, Any], Tensor] | None = None  # f written over z


def _gelu_derivative(z: Tensor, _: Any) -> Tensor:
    cdf = 0.5 * (1 + torch.erf(z / math.sqrt(2)))
    return cdf + z * torch.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)


def _gelu_tanh_derivative(z: Tensor, _: Any) -> Tensor:
    t = torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3))
    inner = math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * z * z)
    return 0.5 * (1 + t) + 0.5 * z * (1 - t * t) * inner


def _silu_derivative(z: Tensor, _: Any) -> Tensor:
    s = torch.sigmoid(z)
    return s * (1 + z * (1 - s))


def _leaky(y: Tensor, slope: Any) -> Tensor:
    return torch.where(y > 0, torch.ones_like(y), slope)


_ROWS = [
    Row("none", nn.Identity, lambda z, _: z, lambda y, _: torch.ones_like(y), True, lambda z, _: z),
    Row(
        "relu",
        nn.ReLU,
        lambda z, _: F.relu(z),
        lambda y, _: torch.where(y <= 0, 0.0, torch.ones_like(y)),
        True,
        lambda z, _: torch.relu_(z),
    ),
    Row("leaky_relu", nn.LeakyReLU, F.leaky_relu, _leaky, True, F.leaky_relu_),
    Row(
        "sigmoid",
        nn.Sigmoid,
        lambda z, _: torch.sigmoid(z),
        lambda y, _: y * (1 - y),
        True,
        lambda z, _: torch.sigmoid_(z),
    ),
    Row(
        "tanh",
        nn.Tanh,
        lambda z, _: torch.tanh(z),
        lambda y, _: 1 - y * y,
        True,
        lambda z, _: torch.tanh_(z),
    ),
    Row("gelu", nn.GELU, lambda z, _: F.gelu(z), _gelu_derivative, False),
    Row(
        "gelu_tanh",
        nn.GELU,
        lambda z, _: F.gelu(z, approximate="tanh"),
        _gelu_tanh_derivative,
        False,
    ),
    Row("silu", nn.SiLU, lambda z, _: F.silu(z), _silu_derivative, False),
    Row("prelu", nn.PReLU, F.prelu, _leaky, False),
]
TABLE: dict[str, Row] = {row.name: row for row in _ROWS}
NAMES: tuple[str, ...] = tuple(TABLE)


class Act(NamedTuple):
    """An activation with its parameters, as one layer uses it."""

    row: Row
    slope: float = 0.0  # leaky_relu's negative slope
    weight: Tensor | None = None  # PReLU's learned slope: (1,) or (features,)

    @property
    def name(self) -> str:
        """The row's name, which is the kernels' id."""
        return self.row.name

    @property
    def saves_output(self) -> bool:
        """Whether f' comes from f(z). With a slope below 0 f(z) no longer tells the sign of z."""
        return self.row.saves_output and self.slope >= 0

    def __call__(self, z: Tensor) -> Tensor:
        """f(z) by torch's own op."""
        return self.row.function(z, self.slope if self.weight is None else self.weight)

    def derivative(self, saved: Tensor) -> Tensor:
        """f', from f(z) where `saves_output`, else from z."""
        return self.row.derivative(saved, self.slope if self.weight is None else self.weight)

    def write_over(self, z: Tensor) -> Tensor:
        """f(z), in z's memory where torch's autograd allows that."""
        if self.row.inplace is None or not self.saves_output:
            return self(z)
        return self.row.inplace(z, self.slope)


NONE = Act(TABLE["none"])


def from_module(module: nn.Module) -> Act | None:
    """The activation that ``module`` computes, or None where the table has no such row."""
    row = _BY_MODULE.get(type(module))
    if isinstance(module, nn.LeakyReLU) and row:
        return Act(row, module.negative_slope)
    if isinstance(module, nn.PReLU) and row:
        return Act(row, weight=module.weight)
    if isinstance(module, nn.GELU) and row and module.approximate != "none":
        return Act(TABLE["gelu_tanh"]) if module.approximate == "tanh" else None  # torch refuses others
    return None if row is None else Act(row)


# The exact type: a subclass may compute something else. nn.GELU's own row comes before its tanh form.
_BY_MODULE = {row.module: row for row in reversed(_ROWS)}


def module_of(name: str) -> nn.Module:
    """A new ``nn.Module`` of the table's row ``name``, with torch's default slope.

    Raises:
        ValueError: the table has no such row.
    """
    if name not in TABLE:
        raise ValueError(f"name: expected one of {', '.join(NAMES)}, got {name!r}")
    return nn.GELU("tanh") if name == "gelu_tanh" else TABLE[name].module()


def by_name(z: Tensor, name: str) -> Tensor:
    """The activation that `resolve` finds by ``name``, in words that TorchScript knows."""
    if name == "relu":
        return F.relu(z)
    if name == "leaky_relu":
        return F.leaky_relu(z)
    if name == "sigmoid":
        return torch.sigmoid(z)
    if name == "tanh":
        return torch.tanh(z)
    if name == "gelu":
        return F.gelu(z)
    if name == "gelu_tanh":
        return F.gelu(z, approximate="tanh")
    if name == "silu":
        return F.silu(z)
    return z


def resolve(activation: str | nn.Module | Act | None) -> Act:
    """The activation that a user named: a table name, a torch module, or None for none.

    Raises:
        ValueError: the table has no such activation.
    """
    if activation is None:
        return NONE
    if isinstance(activation, Act):
        return activation
    if isinstance(activation, nn.Module):
        act = from_module(activation)
        if act is None:
            raise ValueError(f"activation: {type(activation).__name__} is not one of {_KNOWN}")
        return act
    if activation == "leaky_relu":
        return Act(TABLE["leaky_relu"], 0.01)  # nn.LeakyReLU's default
    if activation == "prelu":
        raise ValueError("activation: 'prelu' has a weight, so pass an nn.PReLU module")
    if activation not in TABLE:
        raise ValueError(f"activation: {activation!r} is not one of {_KNOWN}")
    return Act(TABLE[activation])


_KNOWN = ", ".join(NAMES) + ", or a torch.nn module of one of these"
