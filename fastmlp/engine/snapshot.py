"""Is a model still what `network.recognise` found it to be, its parameters included?"""

from __future__ import annotations

from torch import Tensor, nn

from fastmlp.modules import snapshot


class Snapshot(snapshot.Snapshot):
    """Everything that says what a model and a loss compute, taken when a network was found in them."""

    def __init__(self, model: nn.Module, loss: nn.Module) -> None:
        super().__init__([loss, *model.modules()])
        self._described = [
            (t, type(t), t.dtype, t.device, t.shape, t.requires_grad, t.is_leaf, t.is_contiguous())
            for t in self.tensors
            if t is not None
        ]

    def of(self, model: nn.Module, loss: nn.Module) -> bool:
        """Whether `network.recognise` would find the same in these; False where it might not."""
        if self.modules[0] is not loss or self.modules[1] is not model or not self.holds():
            return False
        for tensor, kind, dtype, device, shape, requires_grad, leaf, contiguous in self._described:
            if (
                tensor.requires_grad is not requires_grad
                or type(tensor) is not kind
                or tensor.dtype is not dtype
                or tensor.device != device
                or tensor.shape != shape
                or tensor.is_contiguous() is not contiguous
                or tensor.is_leaf is not leaf
                or _has_hooks(tensor)
            ):
                return False
        return True


def _has_hooks(tensor: Tensor) -> bool:
    return bool(tensor._backward_hooks or getattr(tensor, "_post_accumulate_grad_hooks", None))
