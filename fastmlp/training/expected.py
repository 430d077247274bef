"""Which data go with a net and a loss: features, and labels or targets."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fastmlp.training import finite, targets
from fastmlp.training.features import Features
from fastmlp.training.targets import Targets


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
    return Expected(features, targets.of(loss, tuple(features.ask(x, name).outputs), y, features.own))
