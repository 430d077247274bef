"""Softmax cross-entropy."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import _reduction as _Reduction
from torch.nn import functional as F

from fastmlp import backends, ops
from fastmlp.autograd.cross_entropy import CpuCrossEntropy, CrossEntropy, Decided, loss_route, reference_loss
from fastmlp.autograd.node import Node, Route, records_grad
from fastmlp.backends import Traced
from fastmlp.backends.base import Backend, LossOptions
from fastmlp.backends.route import Last, Routes
from fastmlp.backends.torch_backend import TorchBackend
from fastmlp.functional.loss_checks import Tensors, check_loss, takes_constants, widened
from fastmlp.functional.traced import of_stand_ins

_CPU = TorchBackend()
#: From so many logits on one buffer instead of ATen's three is worth a Function in Python.
_CPU_ELEMENTS = 1 << 21
_CPU_CLASSES = 512
#: Where ATen's softmax along short rows is slower than the same op on the transposed logits.
_FEW_CLASSES, _MANY_ROWS = 32, 1024


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    *,
    z_loss: float = 0.0,
    inplace: bool = False,
) -> Tensor:
    """Softmax cross-entropy, with the arguments of ``torch.nn.functional.cross_entropy`` and two more.

    The kernels keep the logits, where torch keeps their log-softmax: to write over these before the backward
    is an error there (torch's, of a variable "modified by an inplace operation").

    Args:
        input: logits (C,), (N, C) or (N, C, d1, ...).
        target: class indices (), (N,) or (N, d1, ...); or probabilities of ``input``'s shape.
        weight: of the classes, (C,).
        size_average: deprecated, as torch's.
        ignore_index: class indices that count for nothing.
        reduce: deprecated, as torch's.
        reduction: "none", "mean" or "sum".
        label_smoothing: in [0, 1].
        z_loss: adds ``z_loss`` * lse² to the loss of every row that counts, before the reduction
            (PaLM, arXiv:2204.02311); it keeps the logits' scale from drifting.
        inplace: let the backward write the gradient over the logits, whose version it bumps: half
            the memory, and a second backward raises. Torch's own op, where that runs, never does.

    Returns:
        A scalar, or the shape of the rows for reduction "none". On a GPU a target that is not a class
        makes its row's loss NaN; ``FASTMLP_DEBUG=1`` raises IndexError at the price of a sync.

    Raises:
        ValueError, RuntimeError, IndexError, TypeError: as torch's, naming the argument.
    """
    way = key = None
    off = backends.off_gpu(input)
    if not off and size_average is None and reduce is None:
        what = (ignore_index, reduction, label_smoothing, z_loss, inplace)
        way, key = _WAYS.find(what, (input, target, weight), _LAST)
    if way is not None and not (inplace and input.is_leaf):
        return way(input, target, weight)
    rest = (weight, size_average, ignore_index, reduce, reduction, label_smoothing)
    if not (isinstance(input, Tensor) and isinstance(target, Tensor)):
        return of_stand_ins(cross_entropy, input, target, *rest, z_loss=z_loss, inplace=inplace)
    backend = None if off else backends.choose(input).backend
    compiling = torch.compiler.is_compiling()
    legacy = size_average is not None or reduce is not None
    if backend is None and z_loss == 0 and (compiling or input.numel() < _CPU_ELEMENTS):
        plain = label_smoothing == 0 and not legacy and not compiling  # a trace is for every size
        if plain and _is_tall(input, target, weight):
            columns, labels = input.t().unsqueeze(0), target.unsqueeze(0)
            loss = F.cross_entropy(columns, labels, weight, ignore_index=ignore_index, reduction=reduction)
            return loss.squeeze(0) if reduction == "none" else loss
        return F.cross_entropy(input, target, *rest)
    if legacy:
        reduction = _Reduction.legacy_get_string(size_average, reduce)
    options = LossOptions(ignore_index, reduction, label_smoothing, z_loss)
    return _decide(key, backend, (input, target, weight), options, inplace)(input, target, weight)


class Kernels(NamedTuple):
    """A loss by the kernels."""

    route: Route[Any]
    node: type[Node] | None  # None where no backward follows
    widens: bool  # autocast runs this loss in float32
    reshaped: Callable[[Tensors], Tensors] | None  # how the kernels take the arguments, if not as they are
    shape: tuple[int, ...] | None  # the loss', if it is not as the kernels leave it

    def __call__(self, input: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
        """The loss."""
        tensors = widened(input, target, weight) if self.widens else (input, target, weight)
        if self.reshaped is not None:
            tensors = self.reshaped(tensors)
        if self.node is None:
            loss = self.route.forward(None, tensors)[0]
        else:
            loss = self.node.record(self.route, *tensors)
        return loss if self.shape is None else loss.view(self.shape)


def _by_op(options: LossOptions, *given: Any) -> Tensor:
    """The loss by the op that torch.compile keeps whole."""
    logits, target, weight = widened(*given) if backends.is_autocast(given[0]) else given
    loss = ops.cross_entropy(*_matrices((logits, target, weight)), options)
    return loss.view(len(logits), *logits.shape[2:]) if options.reduction == "none" else loss


def _by_torch(options: LossOptions, *given: Any) -> Tensor:
    """The loss by torch's own ops; what autocast does is theirs, but for a z-loss."""
    widens = options.z_loss and backends.is_autocast(given[0])
    logits, target, weight = widened(*given) if widens else given
    return reference_loss(logits, target, weight, options)


def _on_cpu(options: LossOptions, *given: Any) -> Tensor:
    """The loss by the chunked passes of `TorchBackend`."""
    tensors = widened(*given) if backends.is_autocast(given[0]) else given
    return CpuCrossEntropy.apply(_CPU, options, *tensors)


def _matrices(tensors: Tensors) -> Tensors:
    """Logits (N, C, ...) as (N, C, D), and their targets likewise."""
    logits, target, weight = tensors
    n, c = logits.shape[:2]
    target = target.reshape(n, c, -1) if target.is_floating_point() else target.reshape(n, -1)
    return logits.reshape(n, c, -1), target, weight


#: By what a loss goes: a function of its tensors.
_Way = Kernels | partial[Tensor]
_WAYS: Routes[_Way] = Routes()
_LAST: Last[_Way] = Last()


def _decide(
    key: Hashable | None,
    backend: Backend | Traced | None,
    given: Tensors,
    options: LossOptions,
    inplace: bool,
) -> _Way:
    """By what the loss goes, and all that is to be decided about that; kept if there is a ``key``.

    Raises:
        ValueError, RuntimeError, IndexError: as `cross_entropy`.
    """
    widens, untouched = backends.is_autocast(given[0]), backends.untouched(*given)
    input, target, weight = tensors = widened(*given) if widens else given
    taken = _is_taken(tensors, options)
    if backend is None and taken and untouched and _pays_on_cpu(tensors, options):
        backend = _CPU
    if backend is None or not taken:
        return _WAYS.keep(key, partial(_by_torch, options))
    if backend is _CPU and options.z_loss == 0 and not inplace:
        return _WAYS.keep(key, partial(_on_cpu, options))
    check_loss(tuple(input.shape), input, target, weight, options)
    if inplace and given[0].is_leaf and given[0].requires_grad:
        raise RuntimeError("inplace: a leaf that requires grad cannot be overwritten by its own gradient")
    if isinstance(backend, Traced):
        return partial(_by_op, options)
    # Where elements may share memory (expanded logits) the gradient must not.
    decided = Decided(
        backend, options, inplace and (input if input.dim() == 2 else input.flatten(2)).is_contiguous()
    )
    rows = (len(input), *input.shape[2:]) if options.reduction == "none" else None
    node = CrossEntropy if records_grad() and input.requires_grad else None
    reshaped = _matrices if input.dim() > 3 else None
    way = Kernels(loss_route(decided, _WAYS.patience(key)), node, widens, reshaped, rows)
    return _WAYS.keep(key, way)


def _is_taken(tensors: Tensors, options: LossOptions) -> bool:
    """Whether kernels of ours compute it. torch's own op takes, or refuses, whatever they do not."""
    input, target, weight = tensors
    values = (target if target.is_floating_point() else None, weight)
    return (
        input.dim() >= 2
        and input.numel() > 0
        and takes_constants(target, weight, input.dim(), options)
        and input.dtype in backends.KERNEL_DTYPES  # of float64 under autocast `choose` knows nothing
        and not any(t is not None and t.dtype != input.dtype for t in values)  # torch promotes, or refuses
        and (weight is None or weight.dim() == 1)  # of others torch takes some
    )


def _pays_on_cpu(tensors: Tensors, options: LossOptions) -> bool:
    """Many classes in float32: the chunked passes of `TorchBackend` measured faster than ATen's."""
    input, target, weight = tensors
    return (
        input.device.type == "cpu"
        and backends.requested() == "auto"
        and input.requires_grad
        and records_grad()
        and input.dim() == 2
        and input.dtype == torch.float32
        and input.is_contiguous()
        and input.shape[1] >= _CPU_CLASSES
        and input.numel() >= _CPU_ELEMENTS
        and target.dtype == torch.int64
        and target.shape == input.shape[:1]
        and (weight is None or (weight.shape == input.shape[1:] and weight.dtype == input.dtype))
        and options.label_smoothing == 0
        and bool(((target == options.ignore_index) | (target >= 0) & (target < input.shape[1])).all())
    )


def _is_tall(input: Tensor, target: Tensor, weight: Tensor | None) -> bool:
    """Many rows of few classes on a CPU: measured 2.5 times as fast at (4096, 10), 0.9 at (256, 10)."""
    return (
        input.dim() == 2
        and input.shape[0] >= _MANY_ROWS
        and 0 < input.shape[1] <= _FEW_CLASSES
        and backends.untouched(input, target, weight)
        and input.device.type == "cpu"
        and target.dtype == torch.int64
        and target.shape == input.shape[:1]
        and (weight is None or weight.shape == input.shape[1:])
    )
