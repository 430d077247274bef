"""A module of ours beside torch's, built by the same lines, judged by what both give."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

import fastmlp
from fastmlp import backends
from tests.compatibility.compare import same_or_as_good

#: Builds a model around the ``nn.Sequential`` that it is given: torch's own, or ours.
Make = Callable[[type[nn.Sequential]], nn.Module]
Run = Callable[[nn.Module, Tensor], Sequence[Tensor]]


def plain(kind: type[nn.Sequential]) -> nn.Sequential:
    """5-7-4."""
    return kind(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 4))


def twins(
    make: Make, device: str, dtype: torch.dtype = torch.float32
) -> tuple[nn.Module, nn.Module, nn.Module]:
    """Ours, torch's, and torch's in float64, with the same parameters."""
    made = []
    for kind in (fastmlp.Sequential, nn.Sequential, nn.Sequential):
        torch.manual_seed(0)
        made.append(make(kind).to(device, dtype))
    return made[0], made[1], made[2].double()


def rows(device: str, dtype: torch.dtype = torch.float32, features: int = 5) -> Tensor:
    """An input, (6, features)."""
    torch.manual_seed(1)
    return torch.randn(6, features).to(device, dtype)


def results(net: nn.Module, x: Tensor) -> list[Tensor]:
    """The output, and the gradients of the input and of every parameter that has one."""
    torch.manual_seed(3)
    y = net(x)
    y.square().sum().backward()
    assert x.grad is not None
    return [y, x.grad, *(p.grad for p in net.parameters() if p.grad is not None)]


def agree(
    make: Make,
    backend: str,
    device: str,
    dtype: torch.dtype = torch.float32,
    run: Run = results,
    x: Tensor | None = None,
    roundings: int = 6,
) -> None:
    """``run`` on ours gives what it gives on torch's; so does inference by the backend "auto"."""
    ours, theirs, exact = twins(make, device, dtype)
    x = rows(device, dtype) if x is None else x
    found = [run(net, t) for net, t in zip((ours, theirs, exact), _inputs(x))]
    same_or_as_good(*found, backend, "result", roundings)
    if backend == "torch" and device == "cpu":
        with backends.use("auto"), torch.no_grad():
            for _ in range(2):
                torch.manual_seed(3)
                y = ours(x)
                torch.manual_seed(3)
                assert torch.equal(y, theirs(x))


def _inputs(x: Tensor) -> list[Tensor]:
    if not x.is_floating_point():
        return [x, x, x]
    return [t.detach().clone().requires_grad_() for t in (x, x, x.double())]
