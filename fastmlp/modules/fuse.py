"""Swap the Sequentials inside a model for the fused one."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

from fastmlp.modules.mlp import MLP
from fastmlp.modules.sequential import Sequential
from fastmlp.modules.timm_mlp import TimmMlp

M = TypeVar("M", bound=nn.Module)


def fuse(module: M) -> M:
    """Make every ``nn.Sequential`` in ``module``, itself included, a `Sequential`. In place.

    What changes is the class of the objects that are there: parameters, buffers, names, hooks,
    modes, sharing and optimizers stay. A ``torchvision.ops.MLP`` becomes an `MLP`, and a
    ``timm.layers.Mlp`` a `TimmMlp`; any other subclass of ``nn.Sequential`` may have a forward of its
    own and is left as it is, though what is inside it is fused.

    Returns:
        ``module``.

    Raises:
        TypeError: ``module`` is no ``nn.Module``.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"module: expected an nn.Module, got {type(module).__name__}")
    for child in module.modules():
        kind = type(child)
        name = (kind.__module__, kind.__qualname__)
        if kind is nn.Sequential:
            child.__class__ = Sequential
        elif name == ("torchvision.ops.misc", "MLP"):
            child.__class__ = MLP
        elif name == ("timm.layers.mlp", "Mlp") and child._modules.keys() == set(TimmMlp.ORDER):
            child.__class__ = TimmMlp
    return module
