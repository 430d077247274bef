"""Are modules still what they were found to be? A few microseconds instead of some thirty."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import chain
from operator import attrgetter, is_
from typing import Any

from torch import Tensor, nn
from torch.nn.modules import module as torch_module

#: The dictionaries of the hooks that a call of a module calls.
_hooks = attrgetter("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def hooked(module: nn.Module) -> bool:
    """Whether a call of ``module`` calls hooks, which none of its snapshots would ever know."""
    return any(_hooks(module))


_values: Callable[[dict[str, Tensor | None]], Iterable[Tensor | None]] = dict.values
#: What a call of a module comes to, which can be set on its class.
_methods = attrgetter("forward", "__call__")


class Snapshot:
    """Everything that says what modules compute, but for the values of their tensors.

    What is held cannot be freed, so nothing new can be mistaken for it.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self.modules = list(modules)
        self._types = list(map(type, self.modules))
        self._kinds: set[Any] = set(self._types)
        self._functions = list(map(_methods, self._kinds))
        # A module's attributes hold its dictionaries, which change in place. Those of tensors are compared by
        # what they hold: a tensor might call itself equal to another, or refuse to say.
        self._dicts = [d for m in self.modules for d in (m.__dict__, m._modules)]
        self._copies = [dict(d) for d in self._dicts]
        # Dictionaries are equal in any order, in which children run.
        self._parents = [m._modules for m in self.modules if m._modules]
        self._orders = list(map(list, self._parents))
        self._owners: list[dict[str, Tensor | None]] = [
            d  # type: ignore[misc]
            for m in self.modules
            for d in (m._parameters, m._buffers)
        ]
        self._names = list(chain.from_iterable(self._owners))
        self.tensors: list[Tensor | None] = list(chain.from_iterable(map(_values, self._owners)))
        self._hooks = list(chain.from_iterable(map(_hooks, self.modules)))

    def holds(self) -> bool:
        """Whether the same would be found in the modules now; False where it might not."""
        if any(self._hooks) or torch_module._has_any_global_hook():
            return False
        if list(chain.from_iterable(self._owners)) != self._names:
            return False
        if not all(map(is_, chain.from_iterable(map(_values, self._owners)), self.tensors)):
            return False
        try:
            same = self._dicts == self._copies and list(map(list, self._parents)) == self._orders
        except (RuntimeError, ValueError):  # an attribute is another array than before
            return False
        if list(map(type, self.modules)) != self._types:
            return False
        return same and list(map(_methods, self._kinds)) == self._functions
