"""A training step by autograd: for any model, loss and optimizer."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from fastmlp.engine.base import Executor
from fastmlp.modules import CrossEntropyLoss, Sequential
from fastmlp.modules.dequantize import dequantizes


class AutogradExecutor(Executor):
    """``loss(model(x), y).backward()`` and ``optimizer.step()``, under autocast for 16-bit dtypes.

    float16 scales its gradients. What the fused modules can do they do.
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
        with precision(self.device, self.dtype):
            value, logits = self._objective(x, y)
        self.optimizer.zero_grad()
        self.scaler.scale(value).backward()
        self.updating = True
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.updating = False
        value = value.detach()
        if count:
            self._count(value, logits, y)
        return value

    def _objective(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The loss, and the logits without a gradient; fused to the head where model and loss allow it."""
        if isinstance(self.model, Sequential) and type(self.loss) is CrossEntropyLoss:
            fused = self.model.cross_entropy(x, y, self.loss)
            if fused is not None:
                return fused
        logits = self.model(x)
        return self.loss(logits, y), logits.detach()

    def _count(self, value: Tensor, logits: Tensor, y: Tensor) -> None:
        """Add to `sums`."""
        self.sums[0] += value * len(y)
        if not y.is_floating_point():
            self.sums[1] += (logits.argmax(1) == y).sum()

    def state(self) -> dict[str, Any]:
        """See `Executor.state`; the scale of float16's gradients too."""
        return {**super().state(), "scaler": self.scaler.state_dict()}

    def load_state(self, state: dict[str, Any]) -> None:
        """See `Executor.load_state`."""
        super().load_state(state)
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(state["scaler"])


def precision(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[object]:
    """Autocast to ``dtype``; nothing for float32."""
    return torch.autocast(device.type, dtype, enabled=dtype not in (torch.float32, torch.float64))
