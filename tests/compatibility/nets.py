"""Small nets, and a function for every autograd node of ours."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

import fastmlp
from fastmlp.functional import Layer, chain, cross_entropy, linear_cross_entropy, mlp
from tests.compatibility.compare import same_or_as_good

Function = Callable[[Tensor], Tensor]
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


def losses(device: str, dtype: torch.dtype) -> dict[str, tuple[Function, Tensor]]:
    """A function of every autograd node, each from an input to a scalar; in 16 bits of every other one."""
    like: dict[str, Any] = {"device": device, "dtype": dtype}
    target = torch.tensor(TARGET, device=device)
    net = fastmlp.Sequential(*children(dtype, device))
    weights = [torch.randn(7, 5, **like), torch.randn(4, 7, **like)]
    layers = [Layer(weights[0], None), Layer(weights[1], None)]
    many, x = torch.randn(300, 5, **like), rows_of(dtype, device)
    made: dict[str, tuple[Function, Tensor]] = {
        "chain": (lambda x: chain(x, layers, "layers").sum(), x),
        "whole": (lambda x: mlp(x, weights, activation="tanh", plan="auto").sum(), x),
        "cross_entropy": (lambda x: cross_entropy(x, target), x),
        "linear_cross_entropy": (lambda x: linear_cross_entropy(x, many, target), x),
        "rows": (lambda x: linear_cross_entropy(x, many, target, reduction="none").sum(), x),
        "classifier": (lambda x: _classifier(net, x, target), x),
    }
    if dtype.itemsize > 2:
        return made
    return {name: made[name] for name in list(made)[dtype == torch.bfloat16 :: 2]}  # the interpreter is slow


def _classifier(net: fastmlp.Sequential, x: Tensor, target: Tensor) -> Tensor:
    loss = fastmlp.CrossEntropyLoss()
    found = net.cross_entropy(x, target, loss)
    return loss(net(x), target) if found is None else found[0]
