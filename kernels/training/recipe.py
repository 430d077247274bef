"""The recipe of a training: loss, rule and numerics, all that stays the same from step to step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastmlp.kernels.common.arguments import Blocks, Source
from fastmlp.kernels.launch import cdiv
from fastmlp.kernels.loss.head import blocks
from fastmlp.kernels.loss.softmax import Criterion, criterion
from fastmlp.kernels.tiles import configs
from fastmlp.kernels.training.layer_table import Table


@dataclass(frozen=True)
class Recipe:
    """What is trained and how."""

    loss: str  # "cross_entropy" or "mse"
    reduction: str  # "mean" or "sum"
    rule: str  # one of `fastmlp.kernels.training.optimizers.RULES`
    dtype: torch.dtype  # of the products
    precision: str  # of float32 products: "ieee" or "tf32"
    pdl: bool = False  # programmatic dependent launch
    # Of cross-entropy.
    class_weight: Tensor | None = None  # (C,)
    ignore_index: int = -100
    label_smoothing: float = 0.0
    z_loss: float = 0.0

    def criterion(self, target: Source) -> Criterion:
        """The loss against ``target``, as a kernel's argument."""
        numbers = self.class_weight, self.ignore_index, self.label_smoothing, self.z_loss
        return criterion(self.loss, self.reduction, target, *numbers)

    def head_tile(self, net: Table) -> Blocks:
        """The head's tile, as an argument of the epoch's kernel."""
        weight = net.layers[-1].weight
        tile = configs.for_weight("head", weight, self.dtype, self.precision)
        return blocks(tile, len(weight), self.precision)

    def programs(self, net: Table, rows: int) -> int:
        """Programs of the head, each of which leaves three sums."""
        return cdiv(rows, self.head_tile(net).BLOCK_M)
