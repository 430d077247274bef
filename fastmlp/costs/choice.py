"""Which plan a chain of linear layers takes: of those that fit, the one with the smallest floor."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch

from fastmlp.costs.devices import DEFAULT, DEVICES, Device, find, operand_kind
from fastmlp.costs.plans import Dense, chain, count

#: The widest hidden layer of the whole-network kernels, by the kind of the products' operands: from there on
#: they spill registers in the compiler's report. Without tensor cores operands take registers too.
WHOLE_WIDTHS = {"half": 256, "tf32": 128, "ieee": 64}


def whole_misfit(layers: Sequence[Dense], kind: str) -> str | None:
    """Why the whole-network kernels do not take ``layers``; None if they do.

    Args:
        layers: the chain.
        kind: of the products' operands, see `fastmlp.costs.devices.operand_kind`.
    """
    if len(layers) < 2:
        return "one layer leaves nothing to keep on the chip"
    if any(layer.dropout for layer in layers):
        return "a dropout"
    hidden = layers[:-1]
    if len({(layer.act, layer.keeps_z) for layer in hidden}) > 1:
        return "the hidden layers have different activations"
    widest, most = max(layer.n for layer in hidden), WHOLE_WIDTHS[kind]
    return f"a hidden width of {widest}: at most {most} in {kind} products" if widest > most else None


def _of_kernels(device: str | torch.device | None) -> Device:
    """The device; kernels that run on a CPU are interpreted, in the place of a GPU."""
    found = find(device)
    return DEVICES[DEFAULT] if found.name == "cpu" else found


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
    layers, where = chain(widths), _of_kernels(device)
    if whole_misfit(layers, kind) is not None:
        return "layers"
    names = ("whole", "recompute", "layers") if training else ("whole", "layers")
    return min(
        names,
        key=lambda name: count(name, layers, 1 << power, dtype, where.sms, training).floor(where, kind),
    )
