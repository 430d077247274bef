"""nn.LinearCrossEntropyLoss whose logits never exist whole, also on a torch that has none."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.loss import _WeightedLoss

from fastmlp.functional.linear_loss import linear_cross_entropy

if TYPE_CHECKING:
    from torch.nn import LinearCrossEntropyOptions


class _LinearCrossEntropyLoss(_WeightedLoss):
    """The state of torch 2.14's module, for older ones."""

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        out_features: tuple[int, ...] = (),
        bias: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
        reduction: str = "mean",
        weight: Tensor | None = None,
        ignore_index: int | None = None,
        label_smoothing: float = 0.0,
        options: Any = None,
    ) -> None:
        if weight is not None and weight.shape != (num_classes,):
            raise RuntimeError(f"weight: expected ({num_classes},), one a class, got {tuple(weight.shape)}")
        if not 0 <= label_smoothing <= 1:
            raise RuntimeError(f"label_smoothing: expected a number in [0, 1], got {label_smoothing}")
        if options is not None:
            raise TypeError(f"options: torch {torch.__version__} has no chunks of its own; expected None")
        super().__init__(weight, None, None, reduction)
        self.num_classes, self.out_features = num_classes, out_features
        self.ignore_index, self.label_smoothing, self.options = ignore_index, label_smoothing, options
        outputs = math.prod(out_features, start=num_classes)
        self.linear = nn.Linear(in_features, outputs, bias=bias, device=device, dtype=dtype)

    def extra_repr(self) -> str:
        """As torch's."""
        return (
            f"in_features={self.linear.in_features}, num_classes={self.num_classes}, "
            f"out_features={self.out_features}, bias={self.linear.bias is not None}, "
            f"reduction={self.reduction}, ignore_index={self.ignore_index}, "
            f"label_smoothing={self.label_smoothing}, options={self.options}"
        )


_Base: Any = getattr(nn, "LinearCrossEntropyLoss", _LinearCrossEntropyLoss)


class LinearCrossEntropyLoss(_Base):  # type: ignore[misc]
    """``torch.nn.LinearCrossEntropyLoss``, and `fastmlp.functional.linear_cross_entropy`'s ``workspace``.

    Its state_dict has ``linear.weight`` (C * prod(out_features), in_features) and, with ``bias``,
    ``linear.bias``; and ``weight``, where class weights are given.

    Args:
        in_features: K.
        num_classes: C.
        out_features: (d1, ...): losses that each row has.
        bias: whether there is a bias; off, as torch's.
        device: of the parameters.
        dtype: of the parameters.
        reduction: "none", "mean" or "sum".
        weight: of the classes, (C,).
        ignore_index: class indices that count for nothing; None for -100.
        label_smoothing: in [0, 1].
        options: torch's; see `fastmlp.functional.linear_cross_entropy`.
        workspace: bytes; see `fastmlp.functional.linear_cross_entropy`.

    Raises:
        RuntimeError: ``weight`` or ``label_smoothing`` that does not fit.
        TypeError: ``options`` given to a torch that knows none.
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        out_features: tuple[int, ...] = (),
        bias: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
        reduction: str = "mean",
        weight: Tensor | None = None,
        ignore_index: int | None = None,
        label_smoothing: float = 0.0,
        options: LinearCrossEntropyOptions | None = None,
        workspace: int | None = None,
    ) -> None:
        super().__init__(
            in_features,
            num_classes,
            out_features=out_features,
            bias=bias,
            device=device,
            dtype=dtype,
            reduction=reduction,
            weight=weight,
            ignore_index=ignore_index,
            label_smoothing=label_smoothing,
            options=options,
        )
        self.workspace = workspace

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """(N, K) or (K,) and targets to a scalar, or to (N, *out_features) for reduction "none"."""
        shape = (self.num_classes, *self.out_features)
        bias = self.linear.bias
        return linear_cross_entropy(
            input,
            self.linear.weight.reshape(*shape, self.linear.in_features),
            target,
            linear_bias=None if bias is None else bias.reshape(shape),
            weight=self.weight,
            reduction=self.reduction,
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
            options=self.options,
            workspace=self.workspace,
        )
