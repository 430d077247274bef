"""fastmlp: multilayer perceptrons for PyTorch, fused.

`Sequential`, `MLP`, `CrossEntropyLoss` and `MSELoss` replace torch's and torchvision's one for one; on a
GPU they run fused Triton kernels, on a CPU plain torch.
"""

from fastmlp import starting  # noqa: F401 - before torch, whose import takes seconds

# isort: split
from fastmlp import backends, data, functional, training
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
)

# Each from its own module, whose name it has: mypy takes `from fastmlp.training import fit` for that module.
from fastmlp.modules.cost import cost
from fastmlp.modules.fuse import fuse
from fastmlp.modules.graphed import graphed
from fastmlp.profiling import profile
from fastmlp.training.fit import fit

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
    "backends",
    "cost",
    "data",
    "fit",
    "functional",
    "fuse",
    "graphed",
    "profile",
    "training",
]
