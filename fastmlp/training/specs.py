"""Which features go with a net, and which labels or targets with it and a loss."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Size, Tensor, nn

from fastmlp.engine.autograd import precision
from fastmlp.functional.quantized import INTEGERS
from fastmlp.modules.dequantize import dequantizes
from fastmlp.training import errors, nonfinite
from fastmlp.training.arrays import Pair
from fastmlp.training.nonfinite import Origin

_ROWS = 256  # at most so many of those with a NaN are given to the net, to see what it makes of them
#: What modules raise for features that they do not take.
_REFUSALS = (RuntimeError, ValueError, TypeError, IndexError, NotImplementedError)
_OF_LABELS = (nn.CrossEntropyLoss, nn.NLLLoss)
#: torch's losses that compare an output with a target of the very same shape.
_OF_TARGETS = (
    *(nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss, nn.BCELoss, nn.BCEWithLogitsLoss),
    *(nn.KLDivLoss, nn.PoissonNLLLoss, nn.SoftMarginLoss, nn.MultiLabelSoftMarginLoss),
)
_ONE = 0.01  # how far from 1 the sum of a row of probabilities may be


class Answer(NamedTuple):
    """What a net makes of a kind of features."""

    dtype: torch.dtype | None  # that integers are converted to for it; None for as they are
    outputs: Size  # of an example


class FeatureSpec:
    """The features that a net takes: it is asked once for every shape and dtype that comes.

    Args:
        net: the one to ask.
        device: where it is.
        dtype: of the matrix products.
    """

    def __init__(self, net: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
        self._net, self._device, self._precision = net, device, dtype
        self.own = dtype_of(net)
        self._dequantizes = dequantizes(net)
        self._known: dict[object, Answer] = {}

    def ask(self, x: Tensor, origin: Origin) -> Answer:
        """What the net makes of features like x (N, ...); or a ValueError if it does not take them."""
        kind = x.shape[1:], x.dtype, origin.dtype
        if kind not in self._known:
            self._known[kind] = self._asked(x, origin)
        return self._known[kind]

    def cast(self, x: Tensor, origin: Origin) -> Tensor:
        """x with integers as the net takes them; see `ask`."""
        dtype = self.ask(x, origin).dtype
        return x if dtype is None else x.to(dtype)

    def accept(self, x: Tensor, origin: Origin) -> Tensor:
        """x (N, ...) as the net takes it, finite unless it gives numbers for the rest; or a ValueError."""
        x = self.cast(x, origin)
        rows = nonfinite.bad_rows(x, origin.dtype)
        if len(rows) and not self._bears(self._on_device(x[rows[:_ROWS]], origin)):
            raise ValueError(nonfinite.message(origin, "features", x, rows))
        return x

    def _asked(self, x: Tensor, origin: Origin) -> Answer:
        first = _first(self._net)
        if x.dim() == 1 and isinstance(first, nn.Linear):  # which would take them for one example
            raise self._refusal(x, origin, "x[:, None] makes columns")
        rows = self._on_device(x[:1], origin)
        rows = torch.cat([rows, rows])
        refused: Exception | None = None
        for dtype in self._forms(x):
            try:
                outputs = self._outputs(rows if dtype is None else rows.to(dtype))
            except _REFUSALS as error:
                if errors.is_out_of_memory(error):
                    raise
                refused = error
                continue
            if not isinstance(outputs, Tensor) or outputs.dim() == 0 or len(outputs) != 2:
                got = tuple(outputs.shape) if isinstance(outputs, Tensor) else f"a {type(outputs).__name__}"
                raise ValueError(f"net: expected an output for each example, got {got} for two of them")
            return Answer(dtype, outputs.shape[1:])
        said = (str(refused) or type(refused).__name__).splitlines()[0]
        if (
            isinstance(first, nn.Linear)
            and said.startswith("mat1 and mat2 shapes")
            and x[0].numel() != first.in_features
        ):  # which the message says by itself, without the doubled row
            said = ""
        raise self._refusal(x, origin, said) from refused

    def _forms(self, x: Tensor) -> tuple[torch.dtype | None, ...]:
        """What x may be converted to, the likeliest first; None for as it is."""
        raw = INTEGERS if self._dequantizes else (torch.uint8,)
        if x.is_floating_point() or x.is_complex() or x.dtype in raw:
            return (None,)
        return (self.own,) if self._dequantizes else (None, self.own)

    def _refusal(self, x: Tensor, origin: Origin, reason: str) -> ValueError:
        dtype = origin.dtype if origin.dtype is not None and x.is_floating_point() else x.dtype
        got = f"{_rows(x.shape[1:])} {dtype}"
        first, hint = _first(self._net), ""
        if dtype.is_floating_point and dtype != self.own:
            hint = f"; x.to({self.own}) converts them"
        elif isinstance(first, nn.Linear) and x.dim() > 2 and x[0].numel() == first.in_features:
            hint = "; x.flatten(1) makes rows"
        expected = (
            f"(N, {first.in_features}) {self.own}" if isinstance(first, nn.Linear) else "that the net takes"
        )
        reason = reason and f" ({reason})"
        return ValueError(f"{origin.name}: expected features {expected}, got {got}{reason}{hint}")

    def _on_device(self, x: Tensor, origin: Origin) -> Tensor:
        return x.to(self._device, origin.dtype if x.is_floating_point() else None)

    def _bears(self, rows: Tensor) -> bool:
        """Whether the net gives numbers for rows that lack some.

        An infinity counts as a NaN: a saturated activation makes a number of it, but of its gradient a NaN.
        """
        return bool(self._outputs(rows.where(rows.isfinite(), torch.nan)).isfinite().all())

    @torch.no_grad()
    def _outputs(self, x: Tensor) -> Tensor:
        # Two rows are no batch to learn statistics from.
        with in_mode(False, self._net), precision(self._device, self._precision):
            return self._net(x if self._dequantizes else pixels(x))


class TargetSpec(NamedTuple):
    """What goes with the features: class labels, probabilities of the classes, or floating targets."""

    loss: str  # its name
    classes: int | None = None  # labels are below; None where there are none
    ignored: int = -100  # the label that does not count
    shape: tuple[int, ...] | None = None  # of an example's; None if the loss may take any
    dtype: torch.dtype | None = None  # of floating targets; None for any
    are_probabilities: bool = False
    hint: str = ""  # says where the shape comes from

    @property
    def are_answers(self) -> bool:
        """Whether each example has one right class, so that there is an accuracy."""
        return self.classes is not None and not self.shape

    @property
    def compares_anything(self) -> bool:
        """Whether nothing is known of the loss, which then gets the targets as they are."""
        return self.shape is None and self.classes is None

    def accept(self, y: Tensor, origin: Origin) -> Tensor:
        """y (N, ...), integers as int64, as the loss takes it; or a ValueError.

        On a GPU this reads from it: a label out of range would be a NaN there, or an abort.
        """
        y, name = self.shaped(y), origin.name
        if self.shape is None:
            return y
        if self.classes is not None:
            self._check_labels(y, origin)
            return y
        if y.shape[1:] != self.shape or y.is_complex():
            shape = f"{shape_of((len(y), *self.shape))}, the shape of the net's outputs, for {self.loss}"
            raise ValueError(f"{name}: expected floating targets {shape}, got {_kind(y, origin)}{self.hint}")
        if not y.is_floating_point():
            y = y.to(self.dtype or torch.float32)
        elif origin.dtype is None and y.dtype != self.dtype is not None:
            raise ValueError(f"{name}: expected targets {self.dtype} as the net's parameters, got {y.dtype}")
        rows = nonfinite.bad_rows(y, origin.dtype)
        if len(rows):
            raise ValueError(nonfinite.message(origin, "targets", y, rows))
        if self.are_probabilities:
            self._check_probabilities(y, origin)
        return y

    def shaped(self, y: Tensor) -> Tensor:
        """y (N,) as (N, 1) where that is expected, of which torch would make (N, N); or y (N, 1) as (N,)."""
        shape = () if self.shape is None and self.classes is not None else self.shape
        if shape is None or {tuple(y.shape[1:]), shape} != {(), (1,)}:
            return y
        return y.reshape(len(y), *shape)

    def _check_labels(self, y: Tensor, origin: Origin) -> None:
        assert self.shape is not None
        assert self.classes is not None
        name = origin.name
        if y.shape[1:] != self.shape or y.dtype != torch.int64:
            hint = "; regression takes loss=nn.MSELoss()" if y.is_floating_point() else ""
            expected = f"expected labels {shape_of((len(y), *self.shape))} torch.int64 for {self.loss}"
            raise ValueError(f"{name}: {expected}, got {_kind(y, origin)}{hint}{self.hint}")
        counted = y[y != self.ignored]
        low, high = (int(counted.min()), int(counted.max())) if len(counted) else (0, 0)
        if low < 0 or high >= self.classes:
            raise ValueError(
                f"{name}: expected labels from 0 to {self.classes - 1}, got {low} to {high}; each wants "
                "an output, and torch.unique(y, return_inverse=True)[1] numbers them from 0"
            )

    def _check_probabilities(self, y: Tensor, origin: Origin) -> None:
        """Else a regression without its loss would pass for a classification."""
        if y.min() < 0 or (y.sum(1) - 1).abs().max() > _ONE:
            name, kind = origin.name, _kind(y, origin)
            raise ValueError(
                f"{name}: expected labels ({len(y)},) torch.int64 for {self.loss}, or shares of sum 1, "
                f"got {kind} of {y.min():.4g} to {y.max():.4g}; regression takes loss=nn.MSELoss()"
            )


class DataSpec(NamedTuple):
    """What `fit` and `evaluate` ask of every example, before any step."""

    features: FeatureSpec
    targets: TargetSpec

    def accept(self, x: Tensor, y: Tensor, origin: Origin) -> Pair:
        """x and y as net and loss take them, or a ValueError that says what they do take."""
        return self.features.accept(x, origin), self.targets.accept(y, origin)


def spec_of(
    features: FeatureSpec, loss: nn.Module, example: Pair, name: str, stacklevel: int = 3
) -> DataSpec:
    """What goes with a net and ``loss``, judging by an example, (1, ...) and (1, ...), of the data ``name``.

    A ValueError if they do not take it.
    """
    x, y = example
    outputs = tuple(features.ask(x, Origin(name)).outputs)
    found = _target_spec(loss, outputs, y, features.own)
    if len(outputs) > 1:
        found = found._replace(hint=f"; the net gives {_rows(outputs)} for features {_rows(x.shape[1:])}")
    elif found.compares_anything and {tuple(y.shape[1:]), outputs} == {(), (1,)}:
        hint = "y[:, 0] makes a row" if y.dim() > 1 else "y[:, None] makes columns"
        warnings.warn(
            f"{name}: targets {_rows(y.shape[1:])} beside outputs {_rows(outputs)}: a loss that "
            f"compares them as they are sees (N, N); {hint}",
            stacklevel=stacklevel,
        )
    return DataSpec(features, found)


def _target_spec(loss: nn.Module, outputs: tuple[int, ...], y: Tensor, dtype: torch.dtype) -> TargetSpec:
    """For a net of ``dtype`` that gives ``outputs`` for an example, judging by that one's y (1, ...)."""
    name = type(loss).__name__
    if isinstance(loss, _OF_TARGETS):
        return TargetSpec(name, shape=outputs, dtype=dtype)
    if isinstance(loss, _OF_LABELS):
        if not outputs:
            raise ValueError("net: expected logits (B, classes), got (2,) for two examples")
        if isinstance(loss, nn.CrossEntropyLoss) and y.shape[1:] == outputs:
            return TargetSpec(name, shape=outputs, dtype=dtype, are_probabilities=True)
        return TargetSpec(name, outputs[0], loss.ignore_index, outputs[1:])
    if not y.is_floating_point() and y.dim() == 1 and len(outputs) == 1 and outputs[0] > 1:
        return TargetSpec(name, outputs[0], getattr(loss, "ignore_index", -100), ())
    return TargetSpec(name)


@contextmanager
def in_mode(training: bool, *modules: nn.Module | None) -> Iterator[None]:
    """Put ``modules`` in training or evaluation mode, and then back in the one that each came in."""
    before = [(module, module.training) for module in modules if module is not None]
    for module, _ in before:
        module.train(training)
    try:
        yield
    finally:
        for module, mode in before:
            module.train(mode)


def dtype_of(net: nn.Module) -> torch.dtype:
    """The first floating parameter's dtype; float32 if there is none."""
    return next((p.dtype for p in net.parameters() if p.is_floating_point()), torch.float32)


def pixels(x: Tensor) -> Tensor:
    """uint8 as float32 in [0, 1]; anything else as it is."""
    return x.float().div_(255) if x.dtype == torch.uint8 else x


def shape_of(sizes: tuple[object, ...]) -> str:
    """A shape as torch writes it, of numbers or names."""
    return f"({', '.join(map(str, sizes))}{',' * (len(sizes) == 1)})"


def _rows(sizes: tuple[int, ...]) -> str:
    return shape_of(("N", *sizes))


def _kind(y: Tensor, origin: Origin) -> str:
    dtype = origin.dtype if origin.dtype is not None and y.is_floating_point() else y.dtype
    return f"{shape_of(tuple(y.shape))} {dtype}"


def _first(net: nn.Module) -> nn.Module | None:
    """The module that sees the features first, where it is known which one does."""
    if not isinstance(net, nn.Sequential):
        return net
    return next((_first(child) for child in net if not isinstance(child, (nn.Flatten, nn.Dropout))), None)
