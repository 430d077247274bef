"""What `fit` and `evaluate` are given besides net and data: numbers, a loss, an optimizer."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastmlp import functional
from fastmlp.engine.checks import require_called, require_optimizer
from fastmlp.engine.choose import DTYPES
from fastmlp.modules import CrossEntropyLoss, MSELoss
from fastmlp.training.history import Epoch
from fastmlp.training.schedules import Schedule

#: A loss: a module or a function of (outputs, targets).
Loss = nn.Module | Callable[[Tensor, Tensor], Tensor]

_LEAST_SEED = -(1 << 63)  # torch's

#: Functions as modules, which engines know, and of which it is known what targets they take.
_MODULES: dict[Any, type[nn.Module]] = {
    functional.cross_entropy: CrossEntropyLoss,
    functional.mse_loss: MSELoss,
    F.cross_entropy: nn.CrossEntropyLoss,
    F.nll_loss: nn.NLLLoss,
    F.mse_loss: nn.MSELoss,
    F.l1_loss: nn.L1Loss,
    F.smooth_l1_loss: nn.SmoothL1Loss,
    F.huber_loss: nn.HuberLoss,
    F.binary_cross_entropy: nn.BCELoss,
    F.binary_cross_entropy_with_logits: nn.BCEWithLogitsLoss,
}


class FunctionLoss(nn.Module):
    """A function as a loss, known by its name."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self._function = function
        self.function = getattr(function, "__qualname__", repr(function))  # kept in a checkpoint

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """The function's loss."""
        return self._function(output, target)


def loss_of(loss: Loss | None) -> nn.Module:
    """``loss`` as a module, or a ValueError if it gives no single number; None is `CrossEntropyLoss`."""
    if loss is None:
        return CrossEntropyLoss()
    require_called(loss, "loss", "(outputs, targets)")
    if not isinstance(loss, nn.Module):
        known = _MODULES.get(loss)
        return FunctionLoss(loss) if known is None else known()
    if getattr(loss, "reduction", None) == "none":
        raise ValueError(
            f"loss: expected one number for a batch, got {type(loss).__name__} with reduction='none'; "
            "'mean' is its default"
        )
    return loss


def require_net(net: object) -> None:
    """Raise a ValueError for anything but a module, such as a module's class."""
    if not isinstance(net, nn.Module):
        got = f"the class {net.__name__}" if isinstance(net, type) else repr(net)
        raise ValueError(f"net: expected a module, such as fastmlp.MLP(784, [256, 10]), got {got}")


def whole(value: Any, name: str, least: int) -> int:
    """``value`` as a plain int; or a ValueError if it is not a whole number, or less than ``least``."""
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise ValueError(f"{name}: expected a whole number, got {value!r}") from None
    if number < least:
        raise ValueError(f"{name}: expected at least {least}, got {number}")
    return number


class Options(NamedTuple):
    """`fit`'s arguments besides net and data; see there."""

    epochs: int
    batch_size: int | None
    lr: float
    loss: Any  # `Loss` or None; a module once it is `checked`
    optimizer: torch.optim.Optimizer | None
    schedule: Schedule
    seed: int
    device: torch.device | str | None
    dtype: torch.dtype
    engine: str
    on_batch: Callable[[int], None] | None
    on_epoch: Callable[[Epoch], None] | None
    checkpoint: Path | str | None
    every: int
    every_steps: int
    resume: bool
    changed: Collection[str]
    clip_norm: float | None
    patience: int | None
    min_delta: float

    def checked(self) -> Options:
        """The same with plain ints, and the loss as a module.

        Raises:
            ValueError: `fit` does not take one of them, or not together with another.
        """
        least = {"epochs": 0, "seed": _LEAST_SEED, "every": 0, "every_steps": 0}
        least |= {name: 1 for name in ("batch_size", "patience") if getattr(self, name) is not None}
        numbers: dict[str, Any] = {
            name: whole(getattr(self, name), name, number) for name, number in least.items()
        }
        for name in ("on_batch", "on_epoch"):
            if getattr(self, name) is not None and not callable(getattr(self, name)):
                raise ValueError(f"{name}: expected a function, got {getattr(self, name)!r}")
        if self.optimizer is None:
            _require_rate(self.lr)
        else:
            require_optimizer(self.optimizer)
        if self.dtype not in DTYPES:  # autocast would warn and go on in float32
            raise ValueError(f"dtype: expected one of {', '.join(map(str, DTYPES))}, got {self.dtype}")
        self._check_pairs()
        return self._replace(loss=loss_of(self.loss), **numbers)

    def _check_pairs(self) -> None:
        """Check that no option is there without another that it needs."""
        if not 0 <= self.min_delta < math.inf:
            raise ValueError(f"min_delta: expected at least 0, got {self.min_delta}")
        if self.min_delta and self.patience is None:
            raise ValueError(f"min_delta: expected 0 without patience, got {self.min_delta}")
        if self.resume and self.checkpoint is None:
            raise ValueError(f"resume: expected False without a checkpoint, got {self.resume!r}")
        if self.changed and not self.resume:
            raise ValueError(f"changed: expected nothing without resume, got {self.changed!r}")


def _require_rate(lr: Any) -> None:
    try:
        number = math.nan if isinstance(lr, (str, bytes, bool)) else float(lr)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not 0 <= number < math.inf:
        raise ValueError(f"lr: expected a finite number of at least 0, got {lr!r}")
