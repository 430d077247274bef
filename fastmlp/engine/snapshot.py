"""Is a model still what `network.recognise` found it to be? A few microseconds instead of some thirty."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.modules import module as torch_module


class Snapshot:
    """Everything that says what a model and a loss compute, taken when a network was found in them.

    What is held cannot be freed, so nothing new can be mistaken for it.
    """

    def __init__(self, model: nn.Module, loss: nn.Module) -> None:
        self._modules = [loss, *model.modules()]
        self._types = list(map(type, self._modules))
        self._kinds: set[Any] = set(self._types)
        self._functions = self._methods()
        # A module's attributes hold its dictionaries, which change in place.
        self._dicts = [d for m in self._modules for d in (m.__dict__, m._modules, m._parameters, m._buffers)]
        self._copies = [dict(d) for d in self._dicts]
        self._hooks = [
            hooks
            for m in self._modules
            for hooks in (m._forward_hooks, m._forward_pre_hooks, m._backward_hooks, m._backward_pre_hooks)
        ]
        self._tensors = [
            (d, name, t, type(t), t.dtype, t.device, t.shape, t.requires_grad, t.is_leaf, t.is_contiguous())
            for m in self._modules
            for d in (m._parameters, m._buffers)
            for name, t in d.items()
            if t is not None
        ]

    def holds(self, model: nn.Module, loss: nn.Module) -> bool:
        """Whether `network.recognise` would find the same in these; False where it might not."""
        if self._modules[0] is not loss or self._modules[1] is not model:
            return False
        if any(self._hooks) or torch_module._has_any_global_hook():
            return False
        for owner, name, tensor, kind, dtype, device, shape, requires_grad, leaf, contiguous in self._tensors:
            if (
                owner.get(name) is not tensor
                or tensor.requires_grad is not requires_grad
                or type(tensor) is not kind
                or tensor.dtype is not dtype
                or tensor.device != device
                or tensor.shape != shape
                or tensor.is_contiguous() is not contiguous
                or tensor.is_leaf is not leaf
                or _has_hooks(tensor)
            ):
                return False
        # Tensors are compared above: one that is another might call itself equal, or refuse to say.
        try:
            same = self._dicts == self._copies and list(map(type, self._modules)) == self._types
        except (RuntimeError, ValueError):  # somebody's attribute is another array than it was
            return False
        return same and self._methods() == self._functions

    def _methods(self) -> list[object]:
        """What a call of the modules comes to, which can be set on their classes."""
        return [method for kind in self._kinds for method in (kind.forward, kind.__call__)]


def _has_hooks(tensor: Tensor) -> bool:
    return bool(tensor._backward_hooks or getattr(tensor, "_post_accumulate_grad_hooks", None))
