"""What `fit` and `evaluate` are given besides data: numbers, a loss, an optimizer."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from fastmlp import functional
from fastmlp.engine.checks import require_called
from fastmlp.modules import CrossEntropyLoss, MSELoss

#: A loss: a module or a function of (outputs, targets).
Loss = nn.Module | Callable[[Tensor, Tensor], Tensor]

#: What a function is the default of. As a module it is known to engines, and by what targets it takes.
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
        self.function = getattr(function, "__qualname__", repr(function))  # of which a checkpoint keeps note

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """What the function makes of them."""
        return self._function(output, target)


def loss_of(loss: Loss | None) -> nn.Module:
    """``loss`` as a module; None stands for `CrossEntropyLoss`.

    Raises:
        ValueError: it is none, or one that gives a number for each example.
    """
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
    """See that it is a module.

    Raises:
        ValueError: it is something else, such as a module's class.
    """
    if not isinstance(net, nn.Module):
        got = f"the class {net.__name__}" if isinstance(net, type) else repr(net)
        raise ValueError(f"net: expected a module, such as fastmlp.MLP(784, [256, 10]), got {got}")


def require_rate(lr: Any) -> None:
    """See that it is a learning rate.

    Raises:
        ValueError: it is no finite number, or a negative one.
    """
    try:
        number = math.nan if isinstance(lr, (str, bytes, bool)) else float(lr)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not 0 <= number < math.inf:
        raise ValueError(f"lr: expected a finite number of at least 0, got {lr!r}")


def require_callback(value: object, name: str) -> None:
    """See that it is a function, or None.

    Raises:
        ValueError: it is something else.
    """
    if value is not None and not callable(value):
        raise ValueError(f"{name}: expected a function, got {value!r}")


def whole(value: Any, name: str, least: int) -> int:
    """``value`` as a plain int.

    Raises:
        ValueError: it is no whole number, or less than ``least``.
    """
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise ValueError(f"{name}: expected a whole number, got {value!r}") from None
    if number < least:
        raise ValueError(f"{name}: expected at least {least}, got {number}")
    return number
