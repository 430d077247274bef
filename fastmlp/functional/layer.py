"""The layers of a chain."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastmlp.activations import NONE, Act
from fastmlp.autograd.chain import pack
from fastmlp.backends.base import Quantized
from fastmlp.backends.route import Last
from fastmlp.costs.plans import Dense


class Layer(NamedTuple):
    """One layer of a chain: Y = dropout(act(X weightᵀ + bias))."""

    weight: Tensor  # (N, K)
    bias: Tensor | None  # (N,)
    act: Act = NONE
    dropout: float = 0.0  # the probability of being dropped, in [0, 1]


class Layers(tuple[Layer, ...]):
    """The layers of a chain, and what a call of it is found by."""

    #: Weight, bias and PReLU's weight of each; and those that there are.
    params: tuple[Tensor | None, ...]
    there: tuple[Tensor, ...]
    #: Activations, dropouts, and which tensors there are.
    what: Hashable
    #: How they went the last time.
    last: Last[Any]

    def __new__(cls, layers: Iterable[Layer]) -> Layers:
        """Of one layer after another."""
        made = super().__new__(cls, layers)
        made.params = tuple([t for weight, bias, act, _ in made for t in (weight, bias, act.weight)])
        made.last = Last()
        made.there = tuple([t for t in made.params if t is not None])
        made.what = tuple(
            [(act.row.name, act.slope, dropout, bias is None) for _, bias, act, dropout in made]
        )
        return made

    @property
    def acts(self) -> list[Act]:
        """Of each, without tensors."""
        return [layer.act._replace(weight=None) for layer in self]

    @property
    def dropouts(self) -> tuple[float, ...]:
        """The probability of each."""
        return tuple([layer.dropout for layer in self])

    @property
    def dense(self) -> list[Dense]:
        """The same, as far as costs go."""
        return [
            Dense(
                layer.weight.shape[1],
                layer.weight.shape[0],
                layer.bias is not None,
                layer.act.name,
                keeps_z=not layer.act.saves_output,
                slopes=0 if layer.act.weight is None else layer.act.weight.numel(),
                dropout=layer.dropout > 0,
                slope=layer.act.slope,
                trained=layer.weight.requires_grad and torch.is_grad_enabled(),
            )
            for layer in self
        ]


def flat(input: Tensor | Quantized, layers: Layers) -> tuple[tuple[Tensor, ...], Hashable]:
    """The tensors that there are, the input's and then the layers'; and of a quantized input the rest."""
    if isinstance(input, Tensor):
        return (input, *layers.there), None
    source, numbers = pack(input)
    there = [t for t in source if t is not None]
    return (*there, *layers.there), (numbers, *(t is None for t in source))
