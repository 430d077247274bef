"""A training step by autograd: for any model, loss and optimizer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from fastmlp.backends import autocasts
from fastmlp.engine import rules
from fastmlp.engine.base import Executor
from fastmlp.engine.checks import check_optimizer
from fastmlp.modules import CrossEntropyLoss, MSELoss, Sequential
from fastmlp.modules.dequantize import dequantizes


class AutogradExecutor(Executor):
    """``loss(model(x), y).backward()`` and ``optimizer.step()``, under autocast for 16-bit dtypes.

    Gradients of float16 are scaled. What the fused modules can do, they do. An optimizer that wants a
    closure, such as LBFGS, gets one that does all but the update.
    """

    name = "eager"

    def __init__(
        self,
        model: nn.Module,
        loss: nn.Module,
        optimizer: torch.optim.Optimizer,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        check_optimizer(model, loss, optimizer, dtype)
        self.model, self.loss, self.optimizer = model, loss, optimizer
        self.device, self.dtype = device, dtype
        self.sums = torch.zeros(2, device=device, dtype=torch.float64)
        self.scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)

    def step(self, x: Tensor, y: Tensor, rows: Tensor | None = None, *, count: bool = True) -> Tensor:
        """See `Executor.step`."""
        if rows is not None:
            x, y = x[rows], y[rows]
        if x.dtype == torch.uint8 and not dequantizes(self.model):
            x = x.float().div_(255)
        first: list[Tensor] = []  # the loss before the update, and the output
        dtype = products(self.device, self.dtype)

        def evaluate() -> Tensor:
            with precision(self.device, dtype):
                value, output = self._objective(x, y)
            self.optimizer.zero_grad()
            self.scaler.scale(value).backward()
            self.updating = True
            first.extend([] if first else [value.detach(), output])
            return value

        with without_autocast(self.device):  # as torch wants backward and update
            if rules.wants_closure(self.optimizer):
                self.optimizer.step(evaluate)  # type: ignore[arg-type]
            else:
                evaluate()
                self.scaler.step(self.optimizer)
                self.scaler.update()
        self.updating = False
        value, output = first
        if count:
            self._count(value, output, y)
        return value

    def _objective(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The loss, and the output without a gradient; fused to the head where model and loss allow it."""
        if isinstance(self.model, Sequential):
            fused = None
            if type(self.loss) is CrossEntropyLoss:
                fused = self.model.cross_entropy(x, y, self.loss)
            elif type(self.loss) is MSELoss:
                fused = self.model.mse_loss(x, y, self.loss)
            if fused is not None:
                return fused
        output = self.model(x)
        if type(self.loss) in (MSELoss, nn.MSELoss) and y.shape != output.shape:  # which would be broadcast
            raise ValueError(f"y: expected {tuple(output.shape)} as the output, got {tuple(y.shape)}")
        return one_number(self.loss(output, y)), output.detach()

    def _count(self, value: Tensor, output: Tensor, y: Tensor) -> None:
        """Add to `sums`."""
        self.sums[0] += value * len(y)
        if has_labels(output, y):
            self.sums[1] += (output.argmax(1) == y).sum()

    def state(self) -> dict[str, Any]:
        """See `Executor.state`; the scale of float16's gradients too."""
        return {**super().state(), "scaler": self.scaler.state_dict()}

    def load_state(self, state: dict[str, Any]) -> None:
        """See `Executor.load_state`."""
        super().load_state(state)
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(state["scaler"])


def one_number(value: Any) -> Tensor:
    """What a loss returned for a batch.

    Raises:
        ValueError: it is not a tensor of one number.
    """
    if isinstance(value, Tensor) and value.numel() == 1:
        return value
    got = tuple(value.shape) if isinstance(value, Tensor) else f"a {type(value).__name__}"
    raise ValueError(f"loss: expected a single number for a batch, got {got}")


def has_labels(output: Tensor, y: Tensor) -> bool:
    """Whether y names the right class of each row of the output."""
    return output.dim() == 2 and y.dim() == 1 and not y.is_floating_point()


@contextmanager
def precision(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Autocast to ``dtype``; float32 and float64 leave an enclosing autocast as it is.

    An enclosing autocast keeps copies of the parameters until it ends, and a step changes these. So no copy
    is older than this block, or outlives it.
    """
    torch.clear_autocast_cache()
    try:
        if dtype in (torch.float32, torch.float64):
            yield
        else:
            with torch.autocast(device.type, dtype):
                yield
    finally:
        torch.clear_autocast_cache()


def products(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """What matrix products run in if ``dtype`` is asked for: float32 gives way to an enclosing autocast."""
    return torch.get_autocast_dtype(device.type) if dtype == torch.float32 and _is_on(device) else dtype


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Switch an enclosing autocast off."""
    return torch.autocast(device.type, enabled=False) if _is_on(device) else nullcontext()


def _is_on(device: torch.device) -> bool:
    # A small net's step on a CPU has time for the first of these only; the compiler cannot trace it.
    return torch._C._is_any_autocast_enabled() and autocasts(device.type)
