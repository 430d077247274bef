"""How good a net is on data that it is not trained on."""

from __future__ import annotations

import copy
import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fastmlp.engine.autograd import one_number, precision
from fastmlp.modules import CrossEntropyLoss
from fastmlp.modules.dequantize import dequantizes
from fastmlp.training.arguments import Loss, loss_of, require_net, whole
from fastmlp.training.data_parallel import Ranks, label_weight, reshard
from fastmlp.training.inputs import Data, open_source
from fastmlp.training.sources import Source
from fastmlp.training.specs import DataSpec, FeatureSpec, TargetSpec, in_mode, pixels, shape_of, spec_of

_BATCH = 4096


class Score(NamedTuple):
    """The result of `evaluate`."""

    loss: float  # mean over the examples
    accuracy: float | None  # the share classified right, in [0, 1]; None for regression


def evaluate(
    net: nn.Module,
    data: Data,
    loss: Loss | None = None,
    batch_size: int = _BATCH,
    dtype: torch.dtype = torch.float32,
) -> Score:
    """Loss and accuracy of ``net``, on its device and in evaluation mode. One read at the end.

    Args:
        net: as in `fit`.
        data: as in `fit`; nothing is learned from it.
        loss: None for `CrossEntropyLoss`.
        batch_size: of the forwards; a DataLoader has its own.
        dtype: of the matrix products.

    Raises:
        ValueError: as `fit`.
    """
    require_net(net)
    loss, batch_size = loss_of(loss), whole(batch_size, "batch_size", 1)
    source = open_source(data, "data", device_of(net), net)
    source.require(spec_of(FeatureSpec(net, source.device, dtype), loss, source.example(), "data"))
    return score(net, loss, source, dtype, size=batch_size)


def accuracy(
    net: nn.Module, data: Data, batch_size: int = _BATCH, dtype: torch.dtype = torch.float32
) -> float:
    """The share of ``data`` that ``net`` classifies right, in [0, 1]. One read at the end.

    Raises:
        ValueError: as `fit`.
    """
    require_net(net)
    batch_size = whole(batch_size, "batch_size", 1)
    source = open_source(data, "data", device_of(net), net)
    features = FeatureSpec(net, source.device, dtype)
    x, y = source.example()
    if y.is_floating_point() or y.numel() != 1:
        kind = f"{shape_of(('N', *y.shape[1:]))} {y.dtype}"
        raise ValueError(f"data: expected labels (N,) torch.int64, got targets {kind}")
    outputs = features.ask(x, source.origin).outputs
    if len(outputs) != 1:
        raise ValueError(f"net: expected logits (B, classes), got {(2, *outputs)} for two examples")
    source.require(DataSpec(features, TargetSpec("accuracy", outputs[0])))
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
    """`evaluate` on checked data, a part of every batch in each of the ``ranks``. No ``loss`` gives NaN."""
    device, raw = source.device, dequantizes(net)
    right = torch.zeros((), device=device, dtype=torch.int64)
    total, weights = torch.zeros(2, device=device, dtype=torch.float64).unbind()
    rows = 0
    with in_mode(False, net, loss):
        for x, y in source.batches(size):
            rows += len(y)
            if ranks is not None:
                own = ranks.part(len(y))
                x, y = x[own], y[own]
            with precision(device, dtype):
                outputs = net(x if raw else pixels(x))
                if loss is not None and len(y):
                    value, weighs = _summed(loss, outputs, y)
                    total += value
                    weights += weighs
            if source.has_answers:
                right += (outputs.argmax(1) == y).sum()
    if ranks is not None:
        reshard(net)
    sums = torch.stack([total, weights, right.double()]).tolist()
    losses, weight, correct = sums if ranks is None else ranks.total(*sums, device=device)
    return Score(losses / weight if weight else math.nan, correct / rows if source.has_answers else None)


def _summed(loss: nn.Module, outputs: Tensor, y: Tensor) -> tuple[Tensor, Tensor | int]:
    """What a batch adds to the sum of losses, and to what that is divided by in the end."""
    of_labels = type(loss) in (nn.CrossEntropyLoss, CrossEntropyLoss) and not y.is_floating_point()
    if of_labels and loss.reduction == "mean":
        loss = copy.copy(loss)
        loss.reduction = "sum"  # type: ignore[assignment]
        return loss(outputs, y), label_weight(loss.weight, loss.ignore_index, y)  # type: ignore[arg-type]
    value = one_number(loss(outputs, y))
    return (value if getattr(loss, "reduction", "mean") == "sum" else value * len(y)), len(y)


def device_of(net: nn.Module) -> torch.device:
    """The first parameter's device; the CPU if there is none."""
    return next((parameter.device for parameter in net.parameters()), torch.device("cpu"))
