"""Which features go with a net."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Size, Tensor, nn

from fastmlp.engine.autograd import precision
from fastmlp.functional.quantized import INTEGERS
from fastmlp.modules.dequantize import dequantizes
from fastmlp.training import finite, memory
from fastmlp.training.targets import shape_of

_ROWS = 256  # at most so many of those with a NaN are given to the net, to see what it makes of them
#: What modules raise for features that they do not take.
_REFUSALS = (RuntimeError, ValueError, TypeError, IndexError, NotImplementedError)


class Answer(NamedTuple):
    """What a net makes of a kind of features."""

    dtype: torch.dtype | None  # to which whole numbers are converted for it; None for as they are
    outputs: Size  # of an example


class Features:
    """The features that a net takes: it is asked once for every shape and dtype that comes.

    Args:
        net: where it computes.
        device: likewise.
        dtype: of the matrix products.
    """

    def __init__(self, net: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
        self._net, self._device, self._precision = net, device, dtype
        self.own = dtype_of(net)
        self._dequantizes = dequantizes(net)
        self._known: dict[object, Answer] = {}

    def ask(self, x: Tensor, name: str, becomes: torch.dtype | None = None) -> Answer:
        """What the net makes of features like x (N, ...), of the data called ``name``.

        ``becomes`` is what floating features are converted to before they reach the net, if they are.

        Raises:
            ValueError: it does not take them.
        """
        kind = x.shape[1:], x.dtype, becomes
        if kind not in self._known:
            self._known[kind] = self._asked(x, name, becomes)
        return self._known[kind]

    def cast(self, x: Tensor, name: str, becomes: torch.dtype | None = None) -> Tensor:
        """x with whole numbers as the net takes them; see `ask`."""
        dtype = self.ask(x, name, becomes).dtype
        return x if dtype is None else x.to(dtype)

    def take(
        self,
        x: Tensor,
        name: str,
        becomes: torch.dtype | None = None,
        where: Callable[[int], str] = finite.row,
    ) -> Tensor:
        """x (N, ...) as the net takes it; see `ask`. ``where`` says which row of the data is a row of x.

        Raises:
            ValueError: the net does not take them, or they are not finite, unless it makes something of that.
        """
        x = self.cast(x, name, becomes)
        if finite.has_others(x, becomes):
            rows = finite.bad_rows(x, becomes)
            if not self._bears(self._on_device(x[rows[:_ROWS]], becomes)):
                raise ValueError(finite.message(name, "features", x, rows, where, becomes))
        return x

    def _asked(self, x: Tensor, name: str, becomes: torch.dtype | None) -> Answer:
        if x.dim() == 1 and isinstance(_first(self._net), nn.Linear):  # which would take them for one example
            raise self._refusal(x, name, becomes, "x[:, None] makes columns")
        rows = self._on_device(x[:1], becomes)
        rows = torch.cat([rows, rows])
        refused: Exception | None = None
        for dtype in self._forms(x):
            try:
                outputs = self._outputs(rows if dtype is None else rows.to(dtype))
            except _REFUSALS as error:
                if memory.is_out_of_memory(error):
                    raise
                refused = error
                continue
            if not isinstance(outputs, Tensor) or outputs.dim() == 0 or len(outputs) != 2:
                got = tuple(outputs.shape) if isinstance(outputs, Tensor) else f"a {type(outputs).__name__}"
                raise ValueError(f"net: expected an output for each example, got {got} for two of them")
            return Answer(dtype, outputs.shape[1:])
        said = (str(refused) or type(refused).__name__).splitlines()[0]
        first = _first(self._net)
        if (
            isinstance(first, nn.Linear)
            and said.startswith("mat1 and mat2 shapes")
            and x[0].numel() != first.in_features
        ):  # which the message says, without the two rows
            said = ""
        raise self._refusal(x, name, becomes, said) from refused

    def _forms(self, x: Tensor) -> tuple[torch.dtype | None, ...]:
        """To what x may be converted, the likeliest first; None is for as it is."""
        raw = INTEGERS if self._dequantizes else (torch.uint8,)
        if x.is_floating_point() or x.is_complex() or x.dtype in raw:
            return (None,)
        return (self.own,) if self._dequantizes else (None, self.own)

    def _refusal(self, x: Tensor, name: str, becomes: torch.dtype | None, reason: str) -> ValueError:
        dtype = becomes if becomes is not None and x.is_floating_point() else x.dtype
        got = f"{shape_of(('N', *x.shape[1:]))} {dtype}"
        first, hint = _first(self._net), ""
        if dtype.is_floating_point and dtype != self.own:
            hint = f"; x.to({self.own}) converts them"
        elif isinstance(first, nn.Linear) and x.dim() > 2 and x[0].numel() == first.in_features:
            hint = "; x.flatten(1) makes rows"
        expected = (
            f"(N, {first.in_features}) {self.own}" if isinstance(first, nn.Linear) else "that the net takes"
        )
        return ValueError(f"{name}: expected features {expected}, got {got}{reason and f' ({reason})'}{hint}")

    def _on_device(self, x: Tensor, becomes: torch.dtype | None) -> Tensor:
        return x.to(self._device, becomes if x.is_floating_point() else None)

    def _bears(self, rows: Tensor) -> bool:
        """Whether the net gives numbers for rows that lack some.

        An infinity counts as a NaN: a saturated activation makes a number of it, but of its gradient a NaN.
        """
        return bool(self._outputs(rows.where(rows.isfinite(), torch.nan)).isfinite().all())

    @torch.no_grad()
    def _outputs(self, x: Tensor) -> Tensor:
        training = self._net.training
        self._net.eval()  # two rows are no batch to learn statistics from
        try:
            with precision(self._device, self._precision):
                return self._net(x if self._dequantizes else pixels(x))
        finally:
            self._net.train(training)


def dtype_of(net: nn.Module) -> torch.dtype:
    """Of the first floating parameter; float32 where there is none."""
    return next((p.dtype for p in net.parameters() if p.is_floating_point()), torch.float32)


def pixels(x: Tensor) -> Tensor:
    """uint8 as float32 in [0, 1]; anything else as it is."""
    return x.float().div_(255) if x.dtype == torch.uint8 else x


def _first(net: nn.Module) -> nn.Module | None:
    """The module that sees the features first, where it is known which one does."""
    if not isinstance(net, nn.Sequential):
        return net
    return next((_first(child) for child in net if not isinstance(child, (nn.Flatten, nn.Dropout))), None)
