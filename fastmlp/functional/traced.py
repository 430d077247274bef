"""What ``torch.fx.symbolic_trace`` passes where a tensor will be."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from torch import Tensor
from torch.overrides import handle_torch_function

from fastmlp.backends.route import PLAIN


def is_stand_in(value: object) -> bool:
    """Whether ``value`` is not a tensor and decides itself what a function makes of it, as fx' proxies do.

    The traced graph then calls the function that it was given to, with every argument.
    """
    return not isinstance(value, Tensor) and hasattr(type(value), "__torch_function__")


def any_stand_in(values: Collection[object]) -> bool:
    """Whether one of ``values`` is; at once where all are plain tensors."""
    return not PLAIN.issuperset(map(type, values)) and any(map(is_stand_in, values))


def of_stand_ins(
    loss: Callable[..., Tensor], input: object, target: object, *args: Any, **kwargs: Any
) -> Any:
    """What a stand-in for a loss' ``input`` or ``target`` makes of the call.

    Raises:
        TypeError: neither is one; it says which is not a tensor.
    """
    if not (is_stand_in(input) or is_stand_in(target)):
        name, wrong = ("target", target) if isinstance(input, Tensor) else ("input", input)
        raise TypeError(f"{name}: expected a Tensor, got {type(wrong).__name__}")
    return handle_torch_function(loss, (input, target), input, target, *args, **kwargs)
