"""Is a model still what `network.recognise` found it to be, its parameters included?"""

from __future__ import annotations

from operator import attrgetter

from torch import nn

from fastmlp.backends.route import Like, describe
from fastmlp.modules import snapshot


class Snapshot(snapshot.Snapshot):
    """Everything that says what a model and a loss compute, taken when a network was found in them."""

    def __init__(self, model: nn.Module, loss: nn.Module) -> None:
        super().__init__([loss, *model.modules()])
        self._there = [t for t in self.tensors if t is not None]
        self._leaves = list(map(_is_leaf, self._there))
        described = describe(self._there)
        self._like = None if described is None else Like(self._there, described)

    def of(self, model: nn.Module, loss: nn.Module) -> bool:
        """Whether `network.recognise` would find the same in these; False where it might not."""
        if self.modules[0] is not loss or self.modules[1] is not model or not self.holds():
            return False
        if self._like is None or not self._like(self._there):
            return False
        if list(map(_is_leaf, self._there)) != self._leaves:
            return False
        return not (any(map(_hooks, self._there)) or any(map(_hooks_of_sums, self._there)))


_is_leaf = attrgetter("is_leaf")
_hooks, _hooks_of_sums = attrgetter("_backward_hooks"), attrgetter("_post_accumulate_grad_hooks")
