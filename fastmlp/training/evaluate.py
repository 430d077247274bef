"""How good a net is on data that it is not trained on."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fastmlp.engine.autograd import precision
from fastmlp.modules import CrossEntropyLoss
from fastmlp.modules.dequantize import dequantizes
from fastmlp.training import inputs, targets
from fastmlp.training.inputs import Data
from fastmlp.training.shares import Ranks, label_weight, reshard
from fastmlp.training.sources import Source

_BATCH = 4096


class Score(NamedTuple):
    """What `evaluate` gives."""

    loss: float  # mean over the examples
    accuracy: float | None  # the share that is classified right, in [0, 1]; None for regression


def evaluate(
    net: nn.Module,
    data: Data,
    loss: nn.Module | None = None,
    batch_size: int = _BATCH,
    dtype: torch.dtype = torch.float32,
) -> Score:
    """Loss and accuracy of ``net``, where it is, in its evaluation mode. One read at the end.

    Args:
        net: as in `fit`.
        data: as in `fit`; it takes no part in any training.
        loss: None for `CrossEntropyLoss`.
        batch_size: of the forwards; a DataLoader has its own.
        dtype: of the matrix products.

    Raises:
        ValueError: as `fit`.
    """
    loss = loss or CrossEntropyLoss()
    device = device_of(net)
    source = inputs.take(data, "data", device, net)
    with precision(device, dtype):
        source.require(targets.of(net, loss, *source.example()))
    return score(net, loss, source, dtype, size=batch_size)


def accuracy(
    net: nn.Module, data: Data, batch_size: int = _BATCH, dtype: torch.dtype = torch.float32
) -> float:
    """The share of ``data`` that ``net`` classifies right, in [0, 1]. One read at the end.

    Raises:
        ValueError: as `fit`.
    """
    source = inputs.take(data, "data", device_of(net), net)
    _, y = source.example()
    if y.is_floating_point():
        raise ValueError(f"data: expected labels (N,) torch.int64, got targets {y.dtype}")
    found = score(net, None, source, dtype, size=batch_size).accuracy
    assert found is not None
    return found


@torch.no_grad()
def score(
    net: nn.Module,
    loss: nn.Module | None,
    source: Source,
    dtype: torch.dtype,
    ranks: Ranks | None = None,
    size: int = _BATCH,
) -> Score:
    """`evaluate` of checked data, a part of every batch in each of the ``ranks``. No loss is NaN."""
    device, training, raw = source.device, net.training, dequantizes(net)
    right = torch.zeros((), device=device, dtype=torch.int64)
    total, weights = torch.zeros(2, device=device, dtype=torch.float64).unbind()
    value, weigh = (None, len) if loss is None else _summing(loss)
    mode = loss is not None and loss.training
    rows, labelled = 0, True
    net.eval()
    if loss is not None:
        loss.eval()
    try:
        for x, y in source.batches(size):
            rows += len(y)
            if ranks is not None:
                own = ranks.part(len(y))
                x, y = x[own], y[own]
            labelled = not y.is_floating_point()
            with precision(device, dtype):
                outputs = net(x if raw else targets.pixels(x))
                if value is not None and len(y):
                    total += value(outputs, y)
                    weights += weigh(y)
            if labelled:
                right += (outputs.argmax(1) == y).sum()
    finally:
        net.train(training)
        if loss is not None:
            loss.train(mode)
    if ranks is not None:
        reshard(net)
    sums = [number.item() for number in (total, weights, right)]
    total_, weights_, right_ = sums if ranks is None else ranks.total(*sums, device=device)
    return Score(total_ / weights_ if weights_ else math.nan, right_ / rows if labelled else None)


def _summing(loss: nn.Module) -> tuple[Callable[[Tensor, Tensor], Tensor], Callable[[Tensor], Tensor | int]]:
    """What a batch adds to a sum, and to what this is divided by in the end."""
    if type(loss) in (nn.CrossEntropyLoss, CrossEntropyLoss) and loss.reduction == "mean":
        loss = copy.copy(loss)
        loss.reduction = "sum"  # type: ignore[assignment]
        return loss, partial(label_weight, loss.weight, loss.ignore_index)  # type: ignore[arg-type]
    if getattr(loss, "reduction", "mean") == "sum":
        return loss, len
    return lambda outputs, y: loss(outputs, y) * len(y), len


def device_of(net: nn.Module) -> torch.device:
    """Of the first parameter; the CPU where there is none."""
    return next((parameter.device for parameter in net.parameters()), torch.device("cpu"))
