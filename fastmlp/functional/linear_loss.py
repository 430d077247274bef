"""Linear layer and softmax cross-entropy in one: the logits of many classes never exist whole."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.overrides import handle_torch_function

from fastmlp import backends, ops
from fastmlp.autograd.linear_cross_entropy import LinearCrossEntropy, LinearLoss
from fastmlp.autograd.node import records_grad
from fastmlp.autograd.tiling import plan
from fastmlp.backends.base import Backend, LossOptions
from fastmlp.backends.route import Last, Routes
from fastmlp.backends.torch_backend import TorchBackend
from fastmlp.functional import chain_loss
from fastmlp.functional.layer import Layer, Layers
from fastmlp.functional.loss import check_loss, left_to_torch
from fastmlp.functional.traced import any_stand_in

if TYPE_CHECKING:
    from torch.nn import LinearCrossEntropyOptions

_REDUCTIONS = ("none", "mean", "sum")
_CPU = TorchBackend()
#: From so many logits on tiles are worth a Function in Python; ATen's chain is faster on fewer.
_CPU_ELEMENTS = 1 << 22
_CPU_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    options: LinearCrossEntropyOptions | None = None,
    workspace: int | None = None,
) -> Tensor:
    """The cross-entropy of input linear_weightᵀ + linear_bias, as torch 2.14's function of that name.

    Many classes are computed in tiles (docs/linear_cross_entropy.md): a tenth of the memory that eager
    takes, with every argument. Gradients of ``weight`` or ``target``, derivatives of derivatives,
    forward-mode AD and ``torch.func`` are left to torch's own ops, and on a CPU ``torch.compile``.

    Args:
        input: (N, K), or (K,).
        linear_weight: (C, K), or (C, d1, ..., K), which gives each row a loss for every d.
        target: class indices (N,) or (N, d1, ...); or probabilities (N, C) or (N, C, d1, ...). Without N
            for an ``input`` (K,).
        linear_bias: (C,) or (C, d1, ...).
        weight: of the classes, (C,).
        reduction: "none", "mean" or "sum".
        ignore_index: class indices that count for nothing; None for -100.
        label_smoothing: in [0, 1].
        options: torch's knobs for torch's own chunks: where these take the call, torch's op runs.
        workspace: bytes that this may take besides its results; None for a tenth of what eager takes
            (at least 32 MB). The tiles are the largest that fit, one row or one class at least. Of no
            effect where torch's own ops run.

    Returns:
        A scalar; for reduction "none" (N,) or (N, d1, ...). On a GPU a target that is no class makes its
        row's loss NaN; ``FASTMLP_DEBUG=1`` raises IndexError at the price of a sync.

    Raises:
        RuntimeError, ValueError, IndexError: as torch's, naming the argument.
        TypeError: ``options`` given to a torch that knows none.
    """
    key = None
    if options is None and not backends.off_gpu(input):
        what = reduction, ignore_index, label_smoothing, workspace
        way, key = _WAYS.find(what, (input, linear_weight, target, linear_bias, weight), _LAST)
        if way is not None:
            bias = () if linear_bias is None else (linear_bias,)
            return way(target, weight, input, linear_weight, *bias)[0]
    if any_stand_in((input, linear_weight, target)):
        return handle_torch_function(
            linear_cross_entropy,
            (input, linear_weight, target),
            input,
            linear_weight,
            target,
            linear_bias=linear_bias,
            weight=weight,
            reduction=reduction,
            ignore_index=ignore_index,
            label_smoothing=label_smoothing,
            options=options,
            workspace=workspace,
        )
    shape = _logits_shape(input, linear_weight, linear_bias)
    probabilities = target.shape == shape
    if probabilities and ignore_index is not None:
        raise RuntimeError("ignore_index: cannot be given with class probabilities as the target")
    if workspace is not None and workspace <= 0:
        raise ValueError(f"workspace: expected a positive number of bytes or None, got {workspace}")
    loss_options = LossOptions(
        -100 if ignore_index is None else ignore_index, reduction, label_smoothing, 0.0
    )
    tensors = (input, linear_weight, target, linear_bias, weight)
    if options is not None and _torch_takes(input, linear_weight, target, loss_options, probabilities):
        return F.linear_cross_entropy(
            input,
            linear_weight,
            target,
            linear_bias=linear_bias,
            weight=weight,
            reduction=reduction,
            ignore_index=ignore_index,
            options=options,
        )
    backend = _backend(tensors, shape, probabilities, loss_options)
    if backend is None:
        return _reference(input, linear_weight, target, linear_bias, weight, loss_options, shape)

    x = input if input.dim() == 2 else input.unsqueeze(0)
    target = target if input.dim() == 2 else target.unsqueeze(0)
    logits_shape = (len(x), *shape[input.dim() - 1 :])
    dtype = backends.compute_dtype(x)
    loss_dtype = torch.float32 if dtype != input.dtype or _autocast(input) else input.dtype
    check_loss(logits_shape, x, target, None if weight is None else weight.to(x.dtype), loss_options)
    c, k = len(linear_weight), x.shape[1]
    if (
        backend is not _CPU
        and c <= backend.head_classes
        and linear_weight.dim() == 2
        and reduction != "none"
        and not probabilities
        and (weight is None or weight.dtype == x.dtype)
    ):
        layers = Layers([Layer(linear_weight, linear_bias)])
        way = chain_loss.find(x, layers, target, weight, loss_options, with_output=False)
        if way is None:
            return chain_loss.chain_cross_entropy(x, layers, target, weight, loss_options)[0]
        if x is input:
            _WAYS.keep(key, way)
        return way(target, weight, x, *layers.there)[0]
    w = linear_weight.reshape(c, -1, k)
    b = None if linear_bias is None else linear_bias.reshape(c, -1)
    t = target.reshape(len(x), c, -1) if probabilities else target.reshape(len(x), -1).long()
    if isinstance(backend, backends.Traced):
        loss = ops.linear_cross_entropy(x, w, b, t, weight, loss_options, dtype, loss_dtype, workspace)
        return loss if reduction != "none" else loss.view((*input.shape[:-1], *linear_weight.shape[1:-1]))
    needs = records_grad() and any(p is not None and p.requires_grad for p in (w, b))
    job = LinearLoss(
        backend,
        plan(
            x,
            w,
            dtype,
            loss_dtype,
            scratch=backend.loss_scratch(dtype, probabilities or label_smoothing > 0),
            need_params=needs,
            workspace=workspace,
        ),
        loss_options,
        dtype,
        loss_dtype,
    )
    loss = LinearCrossEntropy.apply(job, x, w, b, t, weight)
    if reduction != "none":
        return loss
    return loss.view((*input.shape[:-1], *linear_weight.shape[1:-1]))


#: Of few classes, whose loss and last layer are one kernel: by what they go.
_WAYS: Routes[chain_loss.Kernels] = Routes()
_LAST: Last[chain_loss.Kernels] = Last()


def _logits_shape(input: Tensor, linear_weight: Tensor, linear_bias: Tensor | None) -> tuple[int, ...]:
    """The shape of the logits, (N, C, d1, ...) or (C,); raises torch's errors for shapes that do not fit."""
    if input.dim() not in (1, 2):
        raise RuntimeError(f"input: expected (N, K) or (K,), got {tuple(input.shape)}")
    if linear_weight.dim() < 2:
        raise RuntimeError(f"linear_weight: expected (C, ..., K), got {tuple(linear_weight.shape)}")
    if input.shape[-1] != linear_weight.shape[-1]:
        raise RuntimeError(
            f"linear_weight: expected (C, ..., {input.shape[-1]}) for input {tuple(input.shape)}, "
            f"got {tuple(linear_weight.shape)}"
        )
    if linear_bias is not None and linear_bias.shape != linear_weight.shape[:-1]:
        raise RuntimeError(
            f"linear_bias: expected {tuple(linear_weight.shape[:-1])} for linear_weight "
            f"{tuple(linear_weight.shape)}, got {tuple(linear_bias.shape)}"
        )
    if linear_weight.dim() > 2 and input.dim() == 1:
        raise RuntimeError(
            f"input: expected (N, {input.shape[0]}) for a linear_weight of {linear_weight.dim()} dimensions, "
            f"got {tuple(input.shape)}"
        )
    return (*input.shape[:-1], *linear_weight.shape[:-1])


def _torch_takes(
    input: Tensor, linear_weight: Tensor, target: Tensor, options: LossOptions, probabilities: bool
) -> bool:
    """Whether torch's own chunks take the call, rather than warn and fall back."""
    if not hasattr(F, "linear_cross_entropy"):
        raise TypeError(
            f"options: torch {torch.__version__} has no linear_cross_entropy of its own; expected None"
        )
    soft = (
        probabilities
        and options.reduction != "none"
        and target.dtype == input.dtype
        and not (target.requires_grad and torch.is_grad_enabled())
    )
    return (
        options.reduction in _REDUCTIONS
        and options.label_smoothing == 0
        and (target.dtype == torch.int64 or soft)
        and linear_weight.dim() == 2
        and not torch.jit.is_tracing()
    )


def _reference(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    linear_bias: Tensor | None,
    weight: Tensor | None,
    options: LossOptions,
    shape: tuple[int, ...],
) -> Tensor:
    """torch's own differentiable ops."""
    if linear_weight.dim() > 2:
        linear_weight = linear_weight.reshape(-1, linear_weight.shape[-1])
        linear_bias = None if linear_bias is None else linear_bias.reshape(-1)
    return F.cross_entropy(
        F.linear(input, linear_weight, linear_bias).reshape(shape),
        target,
        weight,
        ignore_index=options.ignore_index,
        reduction=options.reduction,
        label_smoothing=options.label_smoothing,
    )


def _backend(
    tensors: tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None],
    shape: tuple[int, ...],
    probabilities: bool,
    options: LossOptions,
) -> Backend | backends.Traced | None:
    """Who computes it; None for torch's own ops, which take, or refuse, whatever is odd."""
    input, linear_weight, target, linear_bias, weight = tensors
    if forward_ad._current_level >= 0:  # a Function has no jvp
        return None
    if input.numel() == 0 or linear_weight.numel() == 0 or options.reduction not in _REDUCTIONS:
        return None
    if any(t is not None and t.requires_grad for t in (target, weight)) or not input.is_floating_point():
        return None
    present = [t for t in tensors if t is not None]
    if not all(map(backends.readable, present)):
        return None
    if any(t.device != input.device for t in present) or probabilities != target.is_floating_point():
        return None
    autocast = _autocast(input)
    for parameter in (linear_weight, linear_bias):
        if parameter is not None and parameter.dtype != input.dtype:
            kinds = (torch.float16, torch.bfloat16, torch.float32)
            if not autocast or input.dtype not in kinds or parameter.dtype not in kinds:
                return None
    for values in (weight, target if probabilities else None):
        if values is not None and not autocast and values.dtype != input.dtype:
            return None
        if values is not None and (values.dtype == torch.float64) != (input.dtype == torch.float64):
            return None
    if target.dtype == torch.uint8 and linear_weight.dim() > 2:
        return None
    if not probabilities and input.dim() == 1 and target.dim() > 0:  # torch takes (1,) for ()
        return None
    if weight is not None and weight.dim() != 1:
        return None
    if left_to_torch(target, linear_weight.dim(), weight, options):
        return None
    backend = backends.choose(input).backend
    if backend is not None:
        return backend
    if backends.requested() == "auto" and _pays_on_cpu(input, target, shape, probabilities, options):
        return _CPU
    return None


def _pays_on_cpu(
    input: Tensor, target: Tensor, shape: tuple[int, ...], probabilities: bool, options: LossOptions
) -> bool:
    """Many logits on a CPU: half the time of ATen's, and a tenth of the memory."""
    if (
        not input.is_cpu
        or not backends.untouched(input)
        or torch.Size(shape).numel() < _CPU_ELEMENTS
        or backends.compute_dtype(input) not in _CPU_DTYPES
    ):
        return False
    if probabilities:
        return True
    classes = shape[input.dim() - 1]
    if target.dtype not in (torch.int64, torch.uint8):
        return False
    return bool(((target == options.ignore_index) | (target >= 0) & (target < classes)).all())


def _autocast(input: Tensor) -> bool:
    return input.dtype != torch.float64 and backends.is_autocast(input)
