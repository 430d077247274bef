"""Which plan a chain of linear layers takes on a GPU: a kernel a layer, or one for the whole network."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastmlp.backends import Traced
from fastmlp.backends.base import Backend
from fastmlp.compiling import constant
from fastmlp.costs.choice import WHOLE_WIDTHS, choose_plan
from fastmlp.costs.devices import operand_kind
from fastmlp.functional.layer import Layer

#: The batch that a trace's plan is chosen for, which must not depend on the batch. The choice hardly does.
_TRACED_BATCH = 1024
#: What a user may ask for; "auto" takes what the cost model expects to be the fastest.
PLANS = ("auto", "layers", "whole", "recompute")


def choose(
    backend: Backend | Traced,
    input: Tensor,
    quantized: bool,
    layers: Sequence[Layer],
    dtype: torch.dtype,
    asked: str = "auto",
) -> str:
    """``"layers"``, ``"whole"`` or ``"recompute"``.

    Args:
        backend: what runs it.
        input: (..., K), or what stands for it.
        quantized: whether integers are the input.
        layers: the chain, its shapes checked.
        dtype: of the products.
        asked: one of `PLANS`.

    Raises:
        ValueError: the layers do not fit the plan that was asked for.
    """
    if asked == "layers" or (asked == "auto" and len(layers) < 2):
        return "layers"
    problem = misfit(backend, layers, dtype)
    if quantized:
        problem = "the input is quantized"
    if asked != "auto":
        if problem is not None:
            raise ValueError(f"plan: {asked!r} does not take these layers: {problem}")
        return asked
    if problem is not None:
        return "layers"
    widths = (layers[0].weight.shape[1], *(layer.weight.shape[0] for layer in layers))
    trained = sum(layer.weight.requires_grad for layer in layers) if torch.is_grad_enabled() else 0
    if 0 < trained < len(layers):
        return "layers"  # which skip the frozen ones' gradients
    training = trained > 0 or (torch.is_grad_enabled() and input.requires_grad)
    if isinstance(backend, Traced):  # a trace is for every batch size
        return _for_traces(widths, dtype, input.device, training)
    return choose_plan(widths, input.numel() // widths[0], dtype, input.device, training)


@constant
def _for_traces(widths: tuple[int, ...], dtype: torch.dtype, device: torch.device, training: bool) -> str:
    return choose_plan(widths, _TRACED_BATCH, dtype, device, training)


def misfit(backend: Backend | Traced, layers: Sequence[Layer], dtype: torch.dtype) -> str | None:
    """Why the whole-network kernels do not take ``layers``; None if they do."""
    *hidden, last = layers
    if not hidden:
        return "one layer leaves nothing to keep on the chip"
    if not backend.whole_nets:
        return f"the {backend.name} backend has no such kernels"
    most = WHOLE_WIDTHS[operand_kind(dtype)]
    first = hidden[0].act
    for weight, _, act, _ in hidden:
        if weight.shape[0] > most:
            return f"a hidden width of {weight.shape[0]}: at most {most} in {operand_kind(dtype)} products"
        if act.row is not first.row or act.slope != first.slope:
            return "the hidden layers have different activations"
    if last.act.weight is not None:
        return "a PReLU after the last layer"
    kept_in = last.weight.dtype
    for weight, bias, act, dropout in layers:
        if dropout:
            return "a dropout"
        for tensor in (weight, bias, act.weight):
            if tensor is not None and not (tensor.dtype == kept_in and tensor.is_contiguous()):
                return "a parameter is not contiguous, or of another dtype than the others"
    return None
