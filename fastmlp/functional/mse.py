"""The squared error."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import Tensor
from torch.nn import _reduction as _Reduction

from fastmlp import backends
from fastmlp.autograd.mse import Decided, MeanSquaredError, mse_route, reference
from fastmlp.autograd.node import records_grad
from fastmlp.backends import Traced
from fastmlp.backends.base import SquaredError
from fastmlp.backends.route import Last, Routes
from fastmlp.functional.loss import Kernels
from fastmlp.functional.loss_checks import REDUCTIONS, Tensors, widened
from fastmlp.functional.traced import of_stand_ins


def mse_loss(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    weight: Tensor | None = None,
) -> Tensor:
    """The squared error, with the arguments of ``torch.nn.functional.mse_loss``.

    Shapes that differ, dtypes that differ and a ``weight`` that wants a gradient are left to torch's own
    op, which broadcasts with a warning. So is the loss in a graph of ``torch.compile``: Inductor fuses it
    with what is around it.

    Args:
        input: predictions, of any shape.
        target: of the same shape; it may want a gradient.
        size_average: deprecated, as torch's.
        reduce: deprecated, as torch's.
        reduction: "none", "mean" or "sum".
        weight: of each element, of the same shape; the mean is then over the sum of the weights. Where that
            sum is 0 a mean is NaN; torch's is infinite if some errors are left.

    Returns:
        A scalar, or the input's shape for reduction "none".

    Raises:
        ValueError, RuntimeError, TypeError: as torch's.
    """
    way = key = None
    if backends.off_gpu(input):
        tensors_alone = isinstance(input, Tensor) and isinstance(target, Tensor)
        if tensors_alone and size_average is None and reduce is None:
            return reference(input, target, weight, SquaredError(reduction))
    elif size_average is None and reduce is None:
        way, key = _WAYS.find(reduction, (input, target, weight), _LAST)
    if way is not None:
        return way(input, target, weight)
    if not (isinstance(input, Tensor) and isinstance(target, Tensor)):
        return of_stand_ins(mse_loss, input, target, size_average, reduce, reduction, weight)
    if size_average is not None or reduce is not None:
        reduction = _Reduction.legacy_get_string(size_average, reduce)
    options = SquaredError(reduction)
    backend = backends.choose(input).backend
    if backend is None or isinstance(backend, Traced):
        return _WAYS.keep(key, partial(reference, options=options))(input, target, weight)
    widens = backends.is_autocast(input)
    tensors = widened(input, target, weight) if widens else (input, target, weight)
    if not _fits(tensors, options):
        return _WAYS.keep(key, partial(_by_torch, options, widens))(input, target, weight)
    recorded = records_grad() and any(t is not None and t.requires_grad for t in tensors)
    route = mse_route(Decided(backend, options), _WAYS.patience(key))
    reshaped = None if input.dim() == 2 else _matrices
    shape = input.shape if reduction == "none" and reshaped else None
    way = Kernels(route, MeanSquaredError if recorded else None, widens, reshaped, shape)
    return _WAYS.keep(key, way)(input, target, weight)


def _by_torch(options: SquaredError, widens: bool, *given: Any) -> Tensor:
    """The loss by torch's own op."""
    input, target, weight = widened(*given) if widens else given
    return reference(input, target, weight, options)


#: By what a loss goes: a function of its tensors.
_Way = Kernels | partial[Tensor]
_WAYS: Routes[_Way] = Routes()
_LAST: Last[_Way] = Last()


def _fits(tensors: Sequence[Tensor | None], options: SquaredError) -> bool:
    """Whether the kernels take input, target and weight."""
    input, _, weight = tensors
    assert input is not None
    return (
        input.numel() > 0
        and input.dtype in backends.KERNEL_DTYPES
        and options.reduction in REDUCTIONS
        and not (weight is not None and weight.requires_grad)
        and all(
            t.shape == input.shape
            and t.dtype == input.dtype
            and t.device == input.device
            and backends.readable(t)
            and (t.dim() <= 2 or t.is_contiguous())  # others are no matrix
            for t in tensors
            if t is not None
        )
    )


def _matrices(tensors: Tensors) -> Tensors:
    """The same elements as views of two dimensions."""
    views = [None if t is None else t.view(-1, t.shape[-1] if t.dim() > 2 else 1) for t in tensors]
    return tuple(views)  # type: ignore[return-value]
