"""nn.CrossEntropyLoss in one kernel each way."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from fastmlp.functional.loss import cross_entropy


class CrossEntropyLoss(nn.CrossEntropyLoss):
    """``torch.nn.CrossEntropyLoss``, and what `fastmlp.functional.cross_entropy` has besides.

    Args:
        *args: as ``nn.CrossEntropyLoss``'s.
        z_loss: see `fastmlp.functional.cross_entropy`.
        inplace: see `fastmlp.functional.cross_entropy`.
        **kwargs: as ``nn.CrossEntropyLoss``'s.
    """

    def __init__(self, *args: Any, z_loss: float = 0.0, inplace: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.z_loss = z_loss
        self.inplace = inplace

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Logits (N, C, ...) and targets to a scalar, or to (N, ...) for reduction "none"."""
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
