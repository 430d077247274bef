"""Which data go with a net and a loss: features, and labels or targets."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fastmlp.training import finite, targets
from fastmlp.training.features import Features
from fastmlp.training.targets import Targets, shape_of


class Expected(NamedTuple):
    """What `fit` and `evaluate` ask of every example, before a step is made of it."""

    features: Features
    targets: Targets

    def take(
        self,
        x: Tensor,
        y: Tensor,
        name: str,
        becomes: torch.dtype | None = None,
        where: Callable[[int], str] = finite.row,
    ) -> tuple[Tensor, Tensor]:
        """x and y as net and loss take them; see `Features.take` and `Targets.take`.

        Raises:
            ValueError: they do not take them.
        """
        return self.features.take(x, name, becomes, where), self.targets.take(y, name, becomes, where)


def of(features: Features, loss: nn.Module, example: tuple[Tensor, Tensor], name: str) -> Expected:
    """What goes with a net and ``loss``, seen from an ``example``, (1, ...) and (1, ...), of data.

    ``name`` is that of the data, for messages.

    Raises:
        ValueError: they do not take it.
    """
    x, y = example
    outputs = tuple(features.ask(x, name).outputs)
    found = targets.of(loss, outputs, y, features.own)
    if len(outputs) > 1:
        given = f"{_rows(outputs)} for features {_rows(tuple(x.shape[1:]))}"
        found = found._replace(hint=f"; the net gives {given}")
    elif found.compares_anything and {tuple(y.shape[1:]), outputs} == {(), (1,)}:
        hint = "y[:, 0] makes a row" if y.dim() > 1 else "y[:, None] makes columns"
        warnings.warn(
            f"{name}: targets {_rows(tuple(y.shape[1:]))} beside outputs {_rows(outputs)}: a loss that "
            f"compares them as they are sees (N, N); {hint}",
            stacklevel=3,
        )
    return Expected(features, found)


def _rows(sizes: tuple[int, ...]) -> str:
    return shape_of(("N", *sizes))
