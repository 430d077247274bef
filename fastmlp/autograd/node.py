"""What our autograd nodes share: when they compute, and when torch's own ops do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from fastmlp.backends import readable


class Node(torch.autograd.Function):
    """A Function whose ``needs_input_grad`` is False under ``no_grad``; torch's asks the tensors alone."""

    @classmethod
    def apply(cls, *args: Any) -> Any:
        """As torch's."""
        if not torch.is_grad_enabled():
            args = tuple(a.detach() if isinstance(a, Tensor) and a.requires_grad else a for a in args)
        return super().apply(*args)


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
        grad = upstream.to(output.dtype).view(output.shape)
        found = iter(torch.autograd.grad(output, wanted, grad, create_graph=again, allow_unused=True))
    return [next(found) if need and t is not None else None for t, need in zip(seen, needs)]
