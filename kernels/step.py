"""One training step of a whole network in 2L - 1 launches, the optimizer's update included."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastmlp.kernels import configs, quantized
from fastmlp.kernels.arguments import Source, activation, matrix
from fastmlp.kernels.configs import Tile
from fastmlp.kernels.head import Gradients, head_programs, head_step, hidden, targets
from fastmlp.kernels.launch import arch_of
from fastmlp.kernels.linear import linear_act
from fastmlp.kernels.linear_backward import Asked, linear_backward, undone
from fastmlp.kernels.network import Table
from fastmlp.kernels.quantized import Number
from fastmlp.kernels.softmax import Criterion, criterion
from fastmlp.kernels.update import Accumulators, update


@dataclass(frozen=True)
class Task:
    """What is trained and how: all that stays the same from step to step."""

    loss: str  # "cross_entropy" or "mse"
    reduction: str  # "mean" or "sum"
    rule: str  # one of `fastmlp.kernels.optimizers.RULES`
    dtype: torch.dtype  # of the products
    precision: str  # of float32 products: "ieee" or "tf32"
    pdl: bool = False  # programmatic dependent launch
    # Of cross-entropy.
    class_weight: Tensor | None = None  # (C,)
    ignore_index: int = -100
    label_smoothing: float = 0.0
    z_loss: float = 0.0

    def criterion(self, target: Source) -> Criterion:
        """The loss against a batch's targets, as the head's argument."""
        numbers = self.class_weight, self.ignore_index, self.label_smoothing, self.z_loss
        return criterion(self.loss, self.reduction, target, *numbers)

    def programs(self, net: Table, rows: int) -> int:
        """Programs of the head, each of which leaves three sums."""
        weight = net.layers[-1].weight
        kind = configs.precision_class(self.dtype, self.precision)
        return head_programs(rows, arch_of(weight), kind, *weight.shape)


def train_step(
    net: Table,
    task: Task,
    x: Tensor,
    y: Tensor,
    index: Tensor | None,
    x_scale: Number,
    partial: Tensor,
    hypers: Tensor,
    into: Accumulators,
    tile: Tile,
    x_shift: Number | None = None,
) -> None:
    """Forward, loss, backward and update of ``net``. 2L - 1 launches, L >= 2.

    x (M, K) and y, (M,) or of a squared error (M, C), or the data set whose rows ``index`` (M,) are the
    batch; x_scale and x_shift as in `linear_act`; ``partial`` float32, 3 elements a program of the head at
    least; hypers (groups, HYPERS); ``tile`` the one that ``net`` was made for. The net's buffers hold M rows
    at least.
    """
    m = len(x) if index is None else len(index)
    layers, dtype, precision, pdl = net.layers, task.dtype, task.precision, task.pdl
    inputs = x
    for i, layer in enumerate(layers[:-1]):
        assert layer.y is not None
        inputs, _ = linear_act(
            quantized.source(x, index, x_scale, x_shift) if i == 0 else Source(matrix(inputs)),
            layer.copy,
            layer.bias,
            activation(layer.act, layer.slope),
            layer.keeps_z,
            dtype,
            precision,
            out=(layer.y[:m], _rows(layer.saved, m) if layer.keeps_z else None),
            pdl=pdl,
        )
    last, below = layers[-1], layers[-2]
    head_step(
        inputs,
        last.copy,
        last.bias,
        task.criterion(targets(y, index)),
        hidden(below.act, below.slope, _rows(below.saved, m)),
        Gradients(partial, last.dz[:m], below.dz[:m]),
        dtype=dtype,
        precision=precision,
        pdl=pdl,
    )
    for layer, below in reversed(list(zip(layers[1:-1], layers))):
        linear_backward(
            layer.dz[:m],
            Source(matrix(_rows(layer.x, m))),
            layer.copy,
            before=undone(activation(below.act, below.slope), _rows(below.saved, m)),
            asked=Asked(params=False),
            dtype=dtype,
            precision=precision,
            out=below.dz[:m],
            pdl=pdl,
        )
    update(
        net,
        x,
        index,
        x_scale,
        partial,
        task.programs(net, m),
        hypers,
        into,
        rule=task.rule,
        mean=task.reduction == "mean",
        tile=tile,
        dtype=dtype,
        precision=precision,
        x_shift=x_shift,
        pdl=pdl,
    )


def _rows(matrix: Tensor | None, count: int) -> Tensor:
    assert matrix is not None
    return matrix[:count]
