"""Which plan a chain of linear layers takes: of those that fit, the one with the smallest floor.

Decided here and nowhere else, from numbers alone: what runs a chain asks, and so does what says its cost.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch

from fastmlp.compiling import constant
from fastmlp.costs.devices import DEFAULT, DEVICES, find, operand_kind
from fastmlp.costs.plans import Dense, chain, count, widths_of

#: What a user may ask for; "auto" takes what is expected to be the fastest.
PLANS = ("auto", "layers", "whole", "recompute")
#: The widest hidden layer of the whole-network kernels, by the kind of the products' operands: from there on
#: they spill registers in the compiler's report. Without tensor cores operands take registers too.
WHOLE_WIDTHS = {"half": 256, "tf32": 128, "ieee": 64}
#: The batch that a trace's plan is chosen for, which must not depend on the batch. The choice hardly does.
_TRACED_BATCH = 1024


def choose(
    asked: str,
    layers: Sequence[Dense],
    batch: int | None,
    dtype: torch.dtype,
    device: torch.device,
    input_grad: bool = False,
    unfit: str | None = None,
) -> str:
    """The plan of a chain that is about to run: ``"layers"``, ``"whole"`` or ``"recompute"``.

    Args:
        asked: one of `PLANS`.
        layers: the chain.
        batch: rows; None in a trace, which is for every batch.
        dtype: of the products.
        device: where it runs.
        input_grad: whether the input needs a gradient.
        unfit: why the whole-network kernels do not take it for another cause than its layers.

    Raises:
        ValueError: the layers do not fit the plan that was asked for.
    """
    if asked == "layers" or (asked == "auto" and len(layers) < 2):
        return "layers"
    misfit = unfit or whole_misfit(layers, operand_kind(dtype))
    if asked != "auto":
        if misfit is not None:
            raise ValueError(f"plan: {asked!r} does not take these layers: {misfit}")
        return asked
    if misfit is not None or partly_frozen(layers):
        return "layers"
    training = layers[0].trained or input_grad
    if batch is None:
        # Where a width is symbolic, a range's length is a plain number, and the trace is for it.
        widths = tuple(len(range(width)) for width in widths_of(layers))
        return _for_traces(widths, dtype, device, training)
    return choose_plan(widths_of(layers), batch, dtype, device, training)


def partly_frozen(layers: Sequence[Dense]) -> bool:
    """Whether some layers alone want gradients: a kernel a layer skips those of the others."""
    return len({layer.trained for layer in layers}) > 1


def whole_misfit(layers: Sequence[Dense], kind: str) -> str | None:
    """Why the whole-network kernels do not take ``layers``; None if they do.

    Args:
        layers: the chain.
        kind: of the products' operands, see `fastmlp.costs.devices.operand_kind`.
    """
    *hidden, last = layers
    if not hidden:
        return "one layer leaves nothing to keep on the chip"
    most = WHOLE_WIDTHS[kind]
    for layer in hidden:
        if layer.n > most:
            return f"a hidden width of {layer.n}: at most {most} in {kind} products"
        if (layer.act, layer.slope) != (hidden[0].act, hidden[0].slope):
            return "the hidden layers have different activations"
    if last.slopes:
        return "a PReLU after the last layer"
    return "a dropout" if any(layer.dropout for layer in layers) else None


def choose_plan(
    widths: tuple[int, ...],
    batch: int,
    dtype: torch.dtype,
    device: str | torch.device | None = None,
    training: bool = True,
) -> str:
    """``"whole"``, ``"recompute"`` or ``"layers"``: of what fits, the plan with the smallest floor.

    Asked at every forward: a look into a cache, keyed by ``batch`` rounded up to a power of two. A bias and a
    ReLU a layer are assumed: they hardly weigh.

    Args:
        widths: of the input and of every layer.
        batch: rows, at least 1.
        dtype: of the products: float32, float16 or bfloat16.
        device: see `fastmlp.costs.devices.find`.
        training: whether a backward will follow.
    """
    return _chosen(widths, (batch - 1).bit_length(), operand_kind(dtype), dtype, device, training)


@lru_cache(maxsize=4096)
def _chosen(
    widths: tuple[int, ...],
    power: int,
    kind: str,
    dtype: torch.dtype,
    device: str | torch.device | None,
    training: bool,
) -> str:
    layers = chain(widths)
    if whole_misfit(layers, kind) is not None:
        return "layers"
    where = find(device)
    if where.name == "cpu":  # where kernels are interpreted, in the place of a GPU
        where = DEVICES[DEFAULT]
    names = ("whole", "recompute", "layers") if training else ("whole", "layers")
    return min(
        names,
        key=lambda name: count(name, layers, 1 << power, dtype, where.sms, training).floor(where, kind),
    )


@constant
def _for_traces(widths: tuple[int, ...], dtype: torch.dtype, device: torch.device, training: bool) -> str:
    return choose_plan(widths, _TRACED_BATCH, dtype, device, training)
