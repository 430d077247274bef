"""Which labels or targets go with a net and a loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fastmlp.training import finite

_OF_LABELS = (nn.CrossEntropyLoss, nn.NLLLoss)
#: torch's losses that compare an output with a target of the very same shape.
_OF_TARGETS = (
    nn.MSELoss,
    nn.L1Loss,
    nn.SmoothL1Loss,
    nn.HuberLoss,
    nn.BCELoss,
    nn.BCEWithLogitsLoss,
    nn.KLDivLoss,
    nn.PoissonNLLLoss,
    nn.SoftMarginLoss,
    nn.MultiLabelSoftMarginLoss,
)
_ONE = 0.01  # by so much a row of probabilities may miss it


class Targets(NamedTuple):
    """What stands beside the features: class labels, probabilities of the classes, or floating targets."""

    loss: str  # its name
    classes: int | None = None  # labels are below; None where there are none
    ignored: int = -100  # the label that does not count
    shape: tuple[int, ...] | None = None  # of an example's; None for a loss that is free to choose
    dtype: torch.dtype | None = None  # of floating targets; None for any
    are_shares: bool = False  # probabilities
    hint: str = ""  # of what the shape comes from

    @property
    def are_answers(self) -> bool:
        """Whether each example has one right class, so that there is an accuracy."""
        return self.classes is not None and not self.shape

    @property
    def compares_anything(self) -> bool:
        """Whether the loss is one of which nothing is known, and that gets the targets as they are."""
        return self.shape is None and self.classes is None

    def take(
        self,
        y: Tensor,
        name: str,
        becomes: torch.dtype | None = None,
        where: Callable[[int], str] = finite.row,
    ) -> Tensor:
        """y (N, ...), of the data called ``name``, as the loss takes it. On a GPU this reads from it.

        A label out of range would there be a NaN, or an abort.

        Args:
            y: whole numbers are int64.
            name: for messages.
            becomes: what floating targets are converted to before they reach the loss, if they are.
            where: says which row of the data is a row of y.

        Raises:
            ValueError: the loss does not take them.
        """
        y = self.shaped(y)
        if self.shape is None:
            return y
        if self.classes is not None:
            self._check_labels(y, name)
            return y
        if y.shape[1:] != self.shape or y.is_complex():
            raise ValueError(f"{name}: {self._expected(len(y))}, got {_kind(y)}{self.hint}")
        if not y.is_floating_point():
            y = y.to(self.dtype or torch.float32)
        elif becomes is None and y.dtype != self.dtype is not None:
            raise ValueError(f"{name}: expected targets {self.dtype} as the net's parameters, got {y.dtype}")
        if finite.has_others(y, becomes):
            rows = finite.bad_rows(y, becomes)
            raise ValueError(finite.message(name, "targets", y, rows, where, becomes))
        if self.are_shares:
            self._check_shares(y, name)
        return y

    def shaped(self, y: Tensor) -> Tensor:
        """y (N,) as (N, 1) where that is expected, of which torch would make (N, N); or y (N, 1) as (N,)."""
        shape = () if self.shape is None and self.classes is not None else self.shape
        if shape is None or {tuple(y.shape[1:]), shape} != {(), (1,)}:
            return y
        return y.reshape(len(y), *shape)

    def _check_labels(self, y: Tensor, name: str) -> None:
        assert self.shape is not None
        assert self.classes is not None
        if y.shape[1:] != self.shape or y.dtype != torch.int64:
            hint = "; regression takes loss=nn.MSELoss()" if y.is_floating_point() else ""
            expected = f"expected labels {shape_of((len(y), *self.shape))} torch.int64 for {self.loss}"
            raise ValueError(f"{name}: {expected}, got {_kind(y)}{hint}{self.hint}")
        counted = y[y != self.ignored]
        low, high = (int(counted.min()), int(counted.max())) if len(counted) else (0, 0)
        if low < 0 or high >= self.classes:
            raise ValueError(
                f"{name}: expected labels from 0 to {self.classes - 1}, got {low} to {high}; each wants "
                "an output, and torch.unique(y, return_inverse=True)[1] numbers them from 0"
            )

    def _check_shares(self, y: Tensor, name: str) -> None:
        """Else a regression without its loss would pass for a classification."""
        if y.min() < 0 or (y.sum(1) - 1).abs().max() > _ONE:
            raise ValueError(
                f"{name}: expected labels ({len(y)},) torch.int64 for {self.loss}, or shares of sum 1, "
                f"got {_kind(y)} of {y.min():.4g} to {y.max():.4g}; regression takes loss=nn.MSELoss()"
            )

    def _expected(self, count: int) -> str:
        assert self.shape is not None
        shape = shape_of((count, *self.shape))
        return f"expected floating targets {shape}, the shape of the net's outputs, for {self.loss}"


def of(loss: nn.Module, outputs: tuple[int, ...], y: Tensor, dtype: torch.dtype) -> Targets:
    """What goes with ``loss``, seen from the shape of one output and from one example's y (1, ...).

    Args:
        loss: of (outputs, y).
        outputs: the shape that the net makes of an example.
        y: whole numbers are int64.
        dtype: of the net's parameters.

    Raises:
        ValueError: the net gives no logits (B, classes, ...) to compare with labels.
    """
    name, has_numbers = type(loss).__name__, y.is_floating_point()
    if isinstance(loss, _OF_TARGETS):
        return Targets(name, shape=outputs, dtype=dtype)
    if isinstance(loss, _OF_LABELS):
        if not outputs:
            raise ValueError("net: expected logits (B, classes), got (2,) for two examples")
        if isinstance(loss, nn.CrossEntropyLoss) and y.shape[1:] == outputs:
            return Targets(name, shape=outputs, dtype=dtype, are_shares=True)
        return Targets(name, outputs[0], loss.ignore_index, outputs[1:])
    if not has_numbers and y.dim() == 1 and len(outputs) == 1 and outputs[0] > 1:
        return Targets(name, outputs[0], getattr(loss, "ignore_index", -100), ())
    return Targets(name)


def _kind(y: Tensor) -> str:
    return f"{shape_of(tuple(y.shape))} {y.dtype}"


def shape_of(sizes: tuple[object, ...]) -> str:
    """A shape as torch writes it, of numbers or names."""
    return f"({', '.join(map(str, sizes))}{',' * (len(sizes) == 1)})"
