"""nn.CrossEntropyLoss and nn.MSELoss in one kernel each way."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastmlp.functional.loss import cross_entropy
from fastmlp.functional.mse import mse_loss
from fastmlp.modules.stages import written


@written
class CrossEntropyLoss(nn.CrossEntropyLoss):
    """``torch.nn.CrossEntropyLoss``, and what `fastmlp.functional.cross_entropy` has besides.

    Args:
        weight: of the classes, (C,).
        size_average: deprecated, as torch's.
        ignore_index: class indices that count for nothing.
        reduce: deprecated, as torch's.
        reduction: "none", "mean" or "sum".
        label_smoothing: in [0, 1].
        z_loss: see `fastmlp.functional.cross_entropy`.
        inplace: see `fastmlp.functional.cross_entropy`.

    ``torch.jit.script`` makes torch's own loss of it, which knows no ``z_loss``: the script raises.
    """

    def __init__(
        self,
        weight: Tensor | None = None,
        size_average: bool | None = None,
        ignore_index: int = -100,
        reduce: bool | None = None,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
        *,
        z_loss: float = 0.0,
        inplace: bool = False,
    ) -> None:
        super().__init__(weight, size_average, ignore_index, reduce, reduction, label_smoothing)
        self.z_loss = z_loss
        self.inplace = inplace

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Logits (N, C, ...) and targets to a scalar, or to (N, ...) for reduction "none"."""
        if torch.jit.is_scripting():
            if self.z_loss != 0.0:
                raise RuntimeError("z_loss: expected 0 in torch.jit.script, which runs torch's own loss")
            return F.cross_entropy(
                input,
                target,
                self.weight,
                ignore_index=self.ignore_index,
                reduction=self.reduction,
                label_smoothing=self.label_smoothing,
            )
        return cross_entropy(
            input,
            target,
            self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
            z_loss=self.z_loss,
            inplace=self.inplace,
        )


@written
class MSELoss(nn.MSELoss):
    """``torch.nn.MSELoss``.

    Args:
        size_average: deprecated, as torch's.
        reduce: deprecated, as torch's.
        reduction: "none", "mean" or "sum".
    """

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Predictions and targets of one shape to a scalar, or to that shape for reduction "none"."""
        if torch.jit.is_scripting():
            return F.mse_loss(input, target, reduction=self.reduction)
        return mse_loss(input, target, reduction=self.reduction)
