"""A chain of linear layers and its loss in one: the last layer and the loss are one kernel, the head."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastmlp import backends
from fastmlp.autograd.chain import pack
from fastmlp.autograd.chain_loss import ChainLoss
from fastmlp.backends import Traced
from fastmlp.backends.base import Backend, Loss, LossOptions, Quantized, SquaredError
from fastmlp.functional.layer import Layer
from fastmlp.functional.linear import chain, check_chain, draw_drops, fits_kernels, like, split_layers
from fastmlp.functional.loss import check_loss, cross_entropy, left_to_torch
from fastmlp.functional.mse import mse_loss
from fastmlp.functional.quantized import is_constant


def chain_cross_entropy(
    input: Tensor | Quantized,
    layers: Sequence[Layer],
    target: Tensor,
    weight: Tensor | None = None,
    options: LossOptions = LossOptions(),  # noqa: B008
    with_logits: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """The cross-entropy of a chain's output, and that output if asked (without a gradient).

    Where the last layer has at most 256 classes and no activation, the kernels run it with the loss
    as one head; else this is `chain` and then `cross_entropy`.

    Args:
        input: (..., K) of the first layer, or a `Quantized`.
        layers: at least one.
        target: class indices of ``input``'s leading shape, or probabilities.
        weight: of the classes.
        options: the other arguments of `cross_entropy`.
        with_logits: return the logits too.

    Raises:
        ValueError, TypeError, RuntimeError, IndexError: as `chain` and `cross_entropy`.
    """
    x = like(input, layers)
    backend = _with_head(input, x, layers, options)
    if (
        backend is None
        or target.is_floating_point()
        or left_to_torch(target, 2, weight, options)
        or not backends.readable(target)
        or (weight is not None and (not backends.readable(weight) or weight.requires_grad))
    ):
        logits = chain(input, layers)
        loss = cross_entropy(logits, target, weight, **options._asdict())
        return loss, logits.detach() if with_logits else None
    check_chain(x, layers)
    check_loss((len(x), layers[-1].weight.shape[0]), x, target, weight, options)
    return _closed(backend, input, x, layers, target, weight, options, with_logits)


def chain_mse_loss(
    input: Tensor | Quantized,
    layers: Sequence[Layer],
    target: Tensor,
    options: SquaredError = SquaredError(),  # noqa: B008
    with_output: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """The squared error of a chain's output, and that output if asked (without a gradient).

    Where the last layer has at most 256 outputs and no activation, the kernels run it with the loss
    as one head; else this is `chain` and then `mse_loss`.

    Args:
        input: (..., K) of the first layer, or a `Quantized`.
        layers: at least one.
        target: of the output's shape.
        options: the other arguments of `mse_loss`.
        with_output: return the output too.

    Raises:
        ValueError, TypeError, RuntimeError: as `chain` and `mse_loss`.
    """
    x = like(input, layers)
    backend = _with_head(input, x, layers, options)
    dtypes = backends.KERNEL_DTYPES if backends.is_autocast(x) else (x.dtype,)
    if (
        backend is None
        or target.shape != (len(x), layers[-1].weight.shape[0])
        or target.dtype not in dtypes
        or target.device != x.device
        or target.requires_grad
        or not backends.readable(target)
    ):
        output = chain(input, layers)
        return mse_loss(output, target, **options._asdict()), output.detach() if with_output else None
    check_chain(x, layers)
    return _closed(backend, input, x, layers, target, None, options, with_output)


def _with_head(
    input: Tensor | Quantized, x: Tensor, layers: Sequence[Layer], options: Loss
) -> Backend | None:
    """The backend whose head closes ``layers``, or None."""
    backend, last = backends.choose(x).backend, layers[-1]
    if (
        backend is None
        or isinstance(backend, Traced)  # whose ops are a chain and a loss
        or x.dim() != 2
        or not fits_kernels(x, layers)
        or last.act.name != "none"
        or last.dropout != 0
        or last.weight.dim() != 2
        or last.weight.shape[0] > backend.head_classes
        or options.reduction not in ("mean", "sum")
        or (isinstance(input, Quantized) and (len(layers) == 1 or not is_constant(input)))
    ):
        return None
    return backend


def _closed(
    backend: Backend,
    input: Tensor | Quantized,
    x: Tensor,
    layers: Sequence[Layer],
    target: Tensor,
    weight: Tensor | None,
    options: Loss,
    with_logits: bool,
) -> tuple[Tensor, Tensor | None]:
    """The loss as one node, and the logits if asked."""
    acts, params = split_layers(layers)
    tensors, numbers = pack(input)
    return ChainLoss.apply(
        backend,
        backends.compute_dtype(x),
        torch.float32 if backends.is_autocast(x) else x.dtype,
        options,
        with_logits,
        acts,
        draw_drops(layers, x.device),
        target,
        weight,
        numbers,
        *tensors,
        *params,
    )
