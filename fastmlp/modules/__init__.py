"""Modules that replace torch's and torchvision's."""

from fastmlp.modules.cost import Cost, cost
from fastmlp.modules.dequantize import Dequantize
from fastmlp.modules.fuse import FuseReport, fuse
from fastmlp.modules.graphed import graphed
from fastmlp.modules.linear_act import LinearAct
from fastmlp.modules.linear_cross_entropy import LinearCrossEntropyLoss
from fastmlp.modules.loss import CrossEntropyLoss, MSELoss
from fastmlp.modules.mlp import MLP
from fastmlp.modules.sequential import Sequential

__all__ = [
    "MLP",
    "Cost",
    "CrossEntropyLoss",
    "Dequantize",
    "FuseReport",
    "LinearAct",
    "LinearCrossEntropyLoss",
    "MSELoss",
    "Sequential",
    "cost",
    "fuse",
    "graphed",
]
