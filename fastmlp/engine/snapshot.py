"""Is a model still what `network.recognise` found it to be, its parameters included?"""

from __future__ import annotations

from torch import Tensor, nn

from fastmlp.backends.route import Like, describe
from fastmlp.modules import snapshot


class Snapshot(snapshot.Snapshot):
    """Everything that says what a model and a loss compute, taken when a network was found in them."""

    def __init__(self, model: nn.Module, loss: nn.Module) -> None:
        super().__init__([loss, *model.modules()])
        self._there = [t for t in self.tensors if t is not None]
        self._leaves = [t.is_leaf for t in self._there]
        described = describe(self._there)
        self._like = None if described is None else Like(self._there, described)

    def of(self, model: nn.Module, loss: nn.Module) -> bool:
        """Whether `network.recognise` would find the same in these; False where it might not."""
        if self.modules[0] is not loss or self.modules[1] is not model or not self.holds():
            return False
        if self._like is None or not self._like(self._there):
            return False
        return [t.is_leaf for t in self._there] == self._leaves and not any(map(_has_hooks, self._there))


def _has_hooks(tensor: Tensor) -> bool:
    return bool(tensor._backward_hooks or getattr(tensor, "_post_accumulate_grad_hooks", None))
