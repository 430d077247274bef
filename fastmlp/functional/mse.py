"""The squared error."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import _reduction as _Reduction

from fastmlp import backends
from fastmlp.autograd.mse import MeanSquaredError, reference
from fastmlp.backends import Traced
from fastmlp.backends.base import SquaredError
from fastmlp.functional.loss import widened
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
    if not (isinstance(input, Tensor) and isinstance(target, Tensor)):
        return of_stand_ins(mse_loss, input, target, size_average, reduce, reduction, weight)
    if size_average is not None or reduce is not None:
        reduction = _Reduction.legacy_get_string(size_average, reduce)
    options = SquaredError(reduction)
    backend = backends.choose(input).backend
    if backend is None or isinstance(backend, Traced):
        return reference(input, target, weight, options)
    tensors = [input, target, weight]
    if backends.is_autocast(input):  # which runs this loss in float32
        tensors = [None if t is None else widened(t) for t in tensors]
    if not _fits(tensors, options):
        return reference(input, target, weight, options)
    matrices = [None if t is None else _matrix(t) for t in tensors]
    loss = MeanSquaredError.apply(backend, options, *matrices)
    return loss.view(input.shape) if reduction == "none" else loss


def _fits(tensors: Sequence[Tensor | None], options: SquaredError) -> bool:
    """Whether the kernels take input, target and weight."""
    input, _, weight = tensors
    assert input is not None
    return (
        input.numel() > 0
        and input.dtype in backends.KERNEL_DTYPES
        and options.reduction in ("none", "mean", "sum")
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


def _matrix(tensor: Tensor) -> Tensor:
    """The same elements as a view of two dimensions."""
    return tensor if tensor.dim() == 2 else tensor.view(-1, tensor.shape[-1] if tensor.dim() > 2 else 1)
