"""One layer of a chain."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from fastmlp.activations import NONE, Act


class Layer(NamedTuple):
    """One layer of a chain: Y = dropout(act(X weightᵀ + bias))."""

    weight: Tensor  # (N, K)
    bias: Tensor | None  # (N,)
    act: Act = NONE
    dropout: float = 0.0  # the probability of being dropped, in [0, 1]
