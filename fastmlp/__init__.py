"""fastmlp: multilayer perceptrons for PyTorch, fused.

`Sequential`, `MLP`, `CrossEntropyLoss` and `MSELoss` replace torch's and torchvision's one for one; on a
GPU they run fused Triton kernels, on a CPU plain torch.
"""

import importlib
from typing import TYPE_CHECKING

from fastmlp import starting  # before torch, whose import takes seconds

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

if TYPE_CHECKING or not starting.is_command():
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

    # From its own module, whose name it has: mypy takes `from fastmlp.training import fit` for that module.
    from fastmlp.modules.cost import cost
    from fastmlp.modules.fuse import fuse
    from fastmlp.modules.graphed import graphed
    from fastmlp.profiling import profile
    from fastmlp.training.fit import fit
else:  # the command's --help does not wait for torch: each name is imported as it is used
    _MODULES = {
        "TrainStep": "engine",
        "cost": "modules.cost",
        "fit": "training.fit",
        "fuse": "modules.fuse",
        "graphed": "modules.graphed",
        "profile": "profiling",
    }

    def __getattr__(name: str) -> object:
        if name not in __all__:
            raise AttributeError(f"module 'fastmlp' has no attribute {name!r}")
        if name in ("backends", "data", "functional", "training"):
            return importlib.import_module(f"fastmlp.{name}")
        return getattr(importlib.import_module(f"fastmlp.{_MODULES.get(name, 'modules')}"), name)
