"""Which labels or targets go with a net and a loss."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from fastmlp.modules.dequantize import dequantizes

_OF_LABELS = (nn.CrossEntropyLoss, nn.NLLLoss)
#: torch's losses that compare an output with a target of the very same shape.
_OF_TARGETS = (nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss, nn.BCEWithLogitsLoss)


class Targets(NamedTuple):
    """What stands beside the features: class labels, or floating targets."""

    loss: str  # its name
    classes: int | None  # labels are below; None for floating targets
    ignored: int = -100  # the label that does not count
    outputs: tuple[int, ...] | None = None  # a target's shape; None for a loss that is free to choose
    dtype: torch.dtype | None = None  # of the net's parameters

    def check(self, y: Tensor, name: str) -> None:
        """See that ``y``, of the data called ``name``, is as expected. On a GPU this reads from it.

        A label out of range would there be a NaN, or an abort.

        Raises:
            ValueError: it is not.
        """
        if self.classes is None:
            shape = tuple(y.shape)
            if not y.is_floating_point() or (self.outputs is not None and shape[1:] != self.outputs):
                expected = (len(y), *(self.outputs or ("...",)))
                raise ValueError(
                    f"{name}: expected floating targets {_shape(expected)}, the shape of the net's outputs, "
                    f"for {self.loss}, got {_shape(shape)} {y.dtype}"
                )
            if self.outputs is not None and y.dtype != self.dtype is not None:
                raise ValueError(
                    f"{name}: expected targets {self.dtype} as the net's parameters, got {y.dtype}"
                )
            return
        if y.is_floating_point():
            raise ValueError(
                f"{name}: expected labels ({len(y)},) torch.int64 for {self.loss}, got "
                f"{_shape(tuple(y.shape))} {y.dtype}; regression takes loss=nn.MSELoss()"
            )
        counted = y[y != self.ignored]
        low, high = (int(counted.min()), int(counted.max())) if len(counted) else (0, 0)
        if low < 0 or high >= self.classes:
            raise ValueError(f"{name}: expected labels from 0 to {self.classes - 1}, got {low} to {high}")


@torch.no_grad()
def of(net: nn.Module, loss: nn.Module, x: Tensor, y: Tensor) -> Targets:
    """What ``net`` and ``loss`` go with, seen from one example x (1, ...), y (1, ...) on the device.

    Raises:
        ValueError: the net gives no logits (B, classes) to compare with labels.
    """
    training = net.training
    net.eval()  # one example has no batch statistics
    try:
        outputs = net(x if dequantizes(net) else pixels(x))
    finally:
        net.train(training)
    name = type(loss).__name__
    if isinstance(loss, _OF_TARGETS) or (y.is_floating_point() and not isinstance(loss, _OF_LABELS)):
        fixed = isinstance(loss, _OF_TARGETS)
        dtype = next((p.dtype for p in net.parameters()), None)
        return Targets(name, None, outputs=tuple(outputs.shape[1:]) if fixed else None, dtype=dtype)
    if outputs.dim() != 2:
        raise ValueError(f"net: expected logits (B, classes), got {tuple(outputs.shape)} for one example")
    return Targets(name, outputs.shape[1], getattr(loss, "ignore_index", -100))


def pixels(x: Tensor) -> Tensor:
    """uint8 as float32 in [0, 1]; anything else as it is."""
    return x.float().div_(255) if x.dtype == torch.uint8 else x


def _shape(sizes: tuple[object, ...]) -> str:
    return f"({', '.join(map(str, sizes))}{',' * (len(sizes) == 1)})"
