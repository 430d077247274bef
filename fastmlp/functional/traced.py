"""What ``torch.fx.symbolic_trace`` passes where a tensor will be."""

from __future__ import annotations

from torch import Tensor


def is_stand_in(value: object) -> bool:
    """Whether ``value`` is no tensor and decides itself what a function makes of it, as fx' proxies do.

    The traced graph then calls the function that it was given to, with every argument.
    """
    return not isinstance(value, Tensor) and hasattr(type(value), "__torch_function__")
