"""A chain of linear layers and its loss in one: the last layer and the loss are one kernel, the head."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastmlp import backends
from fastmlp.autograd.chain import Decided
from fastmlp.autograd.chain_loss import ChainLoss, Closed, loss_route
from fastmlp.autograd.layers import LAYERS
from fastmlp.autograd.node import Route
from fastmlp.backends import Traced
from fastmlp.backends.base import Backend, Loss, LossOptions, Net, Quantized, SquaredError
from fastmlp.backends.route import Last, Routes
from fastmlp.functional.checks import check_chain, fits_kernels
from fastmlp.functional.layer import Layer, Layers, flat
from fastmlp.functional.linear import chain
from fastmlp.functional.loss import cross_entropy
from fastmlp.functional.loss_checks import check_loss, takes_constants
from fastmlp.functional.mse import mse_loss
from fastmlp.functional.quantized import is_constant, like
from fastmlp.functional.ways import draw_seed


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
    return _with_loss(cross_entropy, input, layers, target, weight, options, with_logits)


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
    return _with_loss(mse_loss, input, layers, target, None, options, with_output)


def _with_loss(
    loss: Callable[..., Tensor],
    input: Tensor | Quantized,
    layers: Sequence[Layer],
    target: Tensor,
    weight: Tensor | None,
    options: Loss,
    with_output: bool,
) -> tuple[Tensor, Tensor | None]:
    """A chain and its ``loss`` at once, or one by one."""
    layers = layers if type(layers) is Layers else Layers(layers)
    way, tensors = find(input, layers, target, weight, options, with_output)
    if way is not None:
        return way(target, weight, *tensors)
    output = chain(input, layers)
    value = loss(output, target, weight=weight, **options._asdict())
    return value, output.detach() if with_output else None


def find(
    input: Tensor | Quantized,
    layers: Layers,
    target: Tensor,
    weight: Tensor | None,
    options: Loss,
    with_output: bool,
) -> tuple[Kernels | None, tuple[Tensor, ...]]:
    """By what the chain and its loss go, None for one by one; and the chain's tensors for it."""
    tensors, numbers = flat(input, layers)
    what = (options, with_output, numbers, layers.what)
    way, key = _WAYS.find(what, (*tensors, target, weight), _LAST)
    if way is None:
        x = like(input, layers[0].weight)
        backend = _with_head(input, x, layers, options)
        takes: Any = _takes_targets if isinstance(options, SquaredError) else _takes_labels
        if backend is None or not takes(x, layers, target, weight, options):
            way = "one by one"
        else:
            way = _closed(backend, input, x, layers, options, with_output, _WAYS.patience(key))
        _WAYS.keep(key, way)
    return way if isinstance(way, Kernels) else None, tensors


def _takes_labels(
    x: Tensor, layers: Layers, target: Tensor, weight: Tensor | None, options: LossOptions
) -> bool:
    """Whether the head does; raises an error for what nobody takes."""
    if target.is_floating_point() or not takes_constants(target, weight, 2, options):
        return False
    check_chain(x, layers)
    check_loss((len(x), layers[-1].weight.shape[0]), x, target, weight, options)
    return True


def _takes_targets(x: Tensor, layers: Layers, target: Tensor, _: None, options: SquaredError) -> bool:
    """Whether the head does; raises an error for what nobody takes."""
    dtypes = backends.KERNEL_DTYPES if backends.is_autocast(x) else (x.dtype,)
    if (
        target.shape != (len(x), layers[-1].weight.shape[0])
        or target.dtype not in dtypes
        or target.device != x.device
        or target.requires_grad
        or not backends.readable(target)
    ):
        return False
    check_chain(x, layers)
    return True


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
        or not is_constant(input)
        or (isinstance(input, Quantized) and len(layers) == 1)
    ):
        return None
    return backend


def _closed(
    backend: Backend,
    input: Tensor | Quantized,
    x: Tensor,
    layers: Layers,
    options: Loss,
    with_output: bool,
    patience: int,
) -> Kernels:
    """The loss as one node, and the logits if asked."""
    net = Net(layers.params, layers.acts, backends.compute_dtype(x))
    decided = Decided.of(LAYERS, backend, input, net, layers.dropouts)
    loss_dtype = torch.float32 if backends.is_autocast(x) else x.dtype
    route = loss_route(Closed.of(decided, loss_dtype, options, with_output), patience)
    return Kernels(route, decided.first is not None, x.device if any(layers.dropouts) else None)


class Kernels(NamedTuple):
    """A chain and its loss by the kernels."""

    route: Route[Closed]
    recorded: bool  # whether a backward may follow
    device: torch.device | None  # where its dropouts' seed is drawn, if it has any

    def __call__(self, target: Tensor, weight: Tensor | None, *given: Tensor) -> tuple[Tensor, Tensor | None]:
        """The loss, and the output if asked, of the chain's tensors as `flat` gives them."""
        if self.device is not None:
            given = (draw_seed(self.device), *given)
        if self.recorded:
            return ChainLoss.record(self.route, target, weight, *given)
        loss, logits, *_ = self.route.forward(None, (target, weight, *given))
        return loss, logits


#: By what a chain and its loss go.
_WAYS: Routes[Kernels | str] = Routes()
_LAST: Last[Kernels | str] = Last()
