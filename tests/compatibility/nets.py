"""A small net, ours and torch's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

import fastmlp
from tests.compatibility.compare import same_or_as_good

TARGET = (0, 3, 1, 2, 3, 0)


def children(dtype: torch.dtype, device: str, dropout: float = 0.0) -> list[nn.Module]:
    """5-7-4, the same weights at every call."""
    torch.manual_seed(0)
    layers = nn.Linear(5, 7), nn.GELU(), nn.Dropout(dropout), nn.Linear(7, 4)
    return [layer.to(device, dtype) for layer in layers]


def rows_of(dtype: torch.dtype, device: str) -> Tensor:
    """An input, (6, 5)."""
    torch.manual_seed(1)
    return torch.randn(6, 5).to(device, dtype)


def three(dtype: torch.dtype, device: str) -> Iterator[tuple[nn.Sequential, Tensor, torch.dtype]]:
    """Ours, torch's and float64's: a net of the same weights, and the same input."""
    for kind, ours in ((dtype, True), (dtype, False), (torch.float64, False)):
        made = children(dtype, device)
        net = fastmlp.Sequential(*made) if ours else nn.Sequential(*made)
        yield net.to(kind), rows_of(dtype, device).to(kind, copy=True).requires_grad_(), kind


def agree(
    run: Callable[[nn.Sequential, Tensor, torch.dtype], Sequence[Tensor]],
    backend: str,
    dtype: torch.dtype,
    device: str,
) -> None:
    """``run``'s results on ours against torch's."""
    same_or_as_good(*(run(*case) for case in three(dtype, device)), backend, "result")


def all_grads(net: nn.Module, x: Tensor) -> list[Tensor]:
    """Of the input and of every parameter, none of which may be None."""
    grads = [x.grad, *(p.grad for p in net.parameters())]
    assert all(grad is not None for grad in grads)
    return grads  # type: ignore[return-value]
