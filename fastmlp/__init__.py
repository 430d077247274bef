"""fastmlp: multilayer perceptrons for PyTorch, fused.

`Sequential`, `MLP`, `CrossEntropyLoss` and `MSELoss` replace torch's and torchvision's one for one; on a
GPU they run fused Triton kernels, on a CPU plain torch.
"""

from fastmlp import data, functional
from fastmlp.engine import TrainStep
from fastmlp.modules import (
    MLP,
    Cost,
    CrossEntropyLoss,
    Dequantize,
    FuseReport,
    LinearAct,
    LinearCrossEntropyLoss,
    MSELoss,
    Sequential,
    cost,
    fuse,
)
from fastmlp.profiling import profile
from fastmlp.training import fit

__version__ = "0.1.0"
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
    "TrainStep",
    "cost",
    "data",
    "fit",
    "functional",
    "fuse",
    "profile",
]
