"""What our autograd nodes share: when they compute, and when torch's own ops do."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad

from fastmlp.backends import readable
from fastmlp.backends.base import Backend
from fastmlp.backends.route import Like, Modes, describe, precision

T = TypeVar("T")


class Route(Generic[T]):
    """How all calls of one key go: what was decided for them, and their launches forward and backward.

    Args:
        decided: the first argument of both functions.
        backend: what runs them.
        forward: of tensors, after ``decided``.
        backward: of the upstream gradient and what was saved, after ``decided`` and what needs a gradient.
        patience: see `Backend.recorded`.
    """

    def __init__(
        self,
        decided: T,
        backend: Backend,
        forward: Callable[..., Any],
        backward: Callable[..., Any],
        patience: int = 0,
    ) -> None:
        self.decided = decided
        self.forward = backend.recorded(partial(forward, decided), patience)
        self._backend, self._function, self._patience = backend, backward, patience
        self._backwards: dict[tuple[bool, ...], Any] = {}
        self._kinds: dict[Hashable, int] = {}
        self._last: tuple[Like, Any, int] | None = None

    def of(self, grad: Tensor) -> int | None:
        """A number for all that a backward depends on of ``grad``; None where it is for torch's own ops."""
        if self._last is not None:  # the same as ever, but for a few calls
            like, modes, number = self._last
            if modes.check() and like((grad,)) and forward_ad._current_level < 0:
                return number
        if left_to_torch(grad):
            return None
        described = describe((grad,))
        number = self._kinds.setdefault((described, precision()), len(self._kinds))
        self._last = Like((grad,), described), Modes(), number
        return number

    def backward(self, ctx: Any, upstream: int, grad: Tensor, saved: Sequence[Tensor | None]) -> Any:
        """The gradients for a ``grad`` of that number, see `of`, from what was ``saved``."""
        needs = ctx.needs_input_grad
        run = self._backwards.get(needs)
        if run is None:
            function = partial(self._function, self.decided, needs)
            run = self._backwards[needs] = self._backend.recorded(function, self._patience)
        # What hooks give back may lie in memory in another way.
        key = upstream, None if ctx.saved_as_given else describe(saved)
        return run(key, (grad, *saved))


def saves_as_given() -> bool:
    """Whether what a node saves now comes back as it is: nobody's hooks pack it."""
    return torch._C._autograd._top_saved_tensors_default_hooks(True) is None


def records_grad() -> bool:
    """Whether ops are recorded for a backward: in inference mode none are, though grad mode be on.

    Not in what ``torch.compile`` traces, which refuses to ask.
    """
    return torch.is_grad_enabled() and not torch.is_inference_mode_enabled()


class Node(torch.autograd.Function):
    """A Function whose ``needs_input_grad`` is False where no gradient is; torch's asks the tensors alone."""

    @classmethod
    def apply(cls, *args: Any) -> Any:
        """As torch's."""
        if not records_grad():
            args = tuple(a.detach() if isinstance(a, Tensor) and a.requires_grad else a for a in args)
        return super().apply(*args)

    @classmethod
    def record(cls, *args: Any) -> Any:
        """`apply` where it is known that a backward may follow, and that nobody transforms the call."""
        return super(torch.autograd.Function, cls).apply(*args)  # type: ignore[misc]


def held(tensor: Tensor | None) -> Tensor | None:
    """A constant to be saved: an exchange of its ``.data`` does not reach this, a write in place does."""
    return None if tensor is None else tensor.detach()


class Once(Generic[T]):
    """A value for the first backward that takes it, of however many threads that have one graph."""

    def __init__(self, value: T) -> None:
        self._held = [value]

    def take(self) -> T | None:
        """The value; None where it is taken."""
        try:
            return self._held.pop()  # in one step, which an exchange of an attribute is not
        except IndexError:
            return None


class Unchanged:
    """What a forward was given and its backward does not read: torch's check, for what is not saved.

    For small tensors: they live as long as the graph.
    """

    def __init__(self, **tensors: Tensor | None) -> None:
        # Of an inference tensor there is no version; where it is saved too torch raises.
        self._known = [
            (name, t, t._version) for name, t in tensors.items() if t is not None and not t.is_inference()
        ]

    def check(self) -> None:
        """Raise torch's RuntimeError if one was written to since."""
        for name, tensor, version in self._known:
            if tensor._version != version:
                raise written(name, tensor, version)


def written(name: str, tensor: Tensor, version: int) -> RuntimeError:
    """torch's error for a ``tensor`` that was at ``version`` in the forward."""
    return RuntimeError(
        "one of the variables needed for gradient computation has been modified by an inplace "
        f"operation: {name} {tuple(tensor.shape)} is at version {tensor._version}; expected "
        f"version {version} instead"
    )


def left_to_torch(upstream: Tensor) -> bool:
    """Whether a backward from ``upstream`` is for torch's own ops: see `transformed` and `readable`."""
    return transformed(upstream) or not readable(upstream)


def transformed(upstream: Tensor) -> bool:
    """Whether more is asked for than the numbers of a gradient, which are all that a kernel makes.

    The gradients are to be differentiated again, or the upstream one carries a tangent or stands for a
    batch (``is_grads_batched``, ``vmap``).
    """
    return (
        torch.is_grad_enabled()
        or forward_ad._current_level >= 0
        or torch._C._are_functorch_transforms_active()
        or torch._C._functorch.is_legacy_batchedtensor(upstream)
    )


def torch_grads(
    function: Callable[..., Tensor],
    inputs: Sequence[Tensor | None],
    needs: Sequence[bool],
    upstream: Tensor,
) -> list[Tensor | None]:
    """The gradients of ``function(*inputs)``, made of torch's own ops, in the places of ``needs``.

    Where grad mode is on they can be differentiated again.
    """
    again = torch.is_grad_enabled()
    # Autocast is the forward's, which ``function`` knows of, and not that of whoever calls the backward.
    with torch.enable_grad(), torch.autocast(upstream.device.type, enabled=False):
        # Through views: a tensor that is given twice, or of which another is made, has in each place the
        # gradient of that place alone.
        seen = [None if t is None else t.view_as(t) for t in inputs]
        wanted = [t for t, need in zip(seen, needs) if need and t is not None]
        output = function(*seen)
        grad = upstream.to(output.dtype).reshape(output.shape)
        found = iter(torch.autograd.grad(output, wanted, grad, create_graph=again, allow_unused=True))
    return [next(found) if need and t is not None else None for t, need in zip(seen, needs)]
