"""Losses with a gradient in them, as they are written: gradient penalties, eikonal losses, PINNs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fastmlp
from fastmlp.activations import resolve
from fastmlp.functional import Layer, chain
from tests.compatibility.compare import same_or_as_good
from tests.compatibility.operations import At, Problem, second

GROUP = "Autograd"


def _double(
    loss: Callable[[nn.Module, Tensor], Tensor], backend: str, dtype: torch.dtype, device: str
) -> None:
    """The parameters' gradients of a loss that has a gradient in it."""
    x = torch.randn(8, 5, device=device).to(dtype)
    runs = []
    for kind, ours in ((dtype, True), (dtype, False), (torch.float64, False)):
        torch.manual_seed(0)
        layers = nn.Linear(5, 7), nn.SiLU(), nn.Linear(7, 6), nn.SiLU(), nn.Linear(6, 3)
        net = (fastmlp.Sequential if ours else nn.Sequential)(*layers).to(device, dtype).to(kind)
        value = loss(net, x.to(kind))
        value.backward()
        runs.append([value, *(p.grad for p in net.parameters() if p.grad is not None)])
    assert len(runs[0]) == len(runs[1])
    same_or_as_good(*runs, backend, "loss")


@pytest.mark.feature(GROUP, "gradient penalty (WGAN-GP)")
def test_gradient_penalty(backend: str, dtype: torch.dtype, device: str) -> None:
    def critic_loss(net: nn.Module, real: Tensor) -> Tensor:
        fake = real.flip(0) * 0.5
        mixed = (0.3 * real + 0.7 * fake).requires_grad_()
        (grad,) = torch.autograd.grad(net(mixed).sum(), mixed, create_graph=True)
        penalty = (grad.norm(2, dim=1) - 1).square().mean()
        return net(fake).mean() - net(real).mean() + 10 * penalty

    _double(critic_loss, backend, dtype, device)


@pytest.mark.feature(GROUP, "eikonal loss")
def test_eikonal_loss(backend: str, dtype: torch.dtype, device: str) -> None:
    def eikonal(net: nn.Module, x: Tensor) -> Tensor:
        x = x.requires_grad_()
        distance = net(x)[:, 0]
        (grad,) = torch.autograd.grad(distance, x, torch.ones_like(distance), create_graph=True)
        return (grad.norm(dim=1) - 1).abs().mean() + distance.abs().mean()

    _double(eikonal, backend, dtype, device)


@pytest.mark.feature(GROUP, "Laplacian of a net in a loss (PINN)")
def test_laplacian(backend: str, dtype: torch.dtype, device: str) -> None:
    def residual(net: nn.Module, x: Tensor) -> Tensor:
        x = x.requires_grad_()
        (grad,) = torch.autograd.grad(net(x).sum(), x, create_graph=True)
        laplacian = sum(
            torch.autograd.grad(grad[:, i].sum(), x, create_graph=True)[0][:, i] for i in range(x.shape[1])
        )
        return (laplacian + x[:, 0]).square().mean()

    _double(residual, backend, dtype, device)


@pytest.mark.feature(GROUP, "double backward with dropout")
def test_dropout(backend: str, dtype: torch.dtype, device: str) -> None:
    """The kernels draw the mask again: of a linear layer it shows in the output, and torch's ops take it."""
    like = At(dtype, device)
    leaves = [like.randn(6, 5), like.randn(40, 5), like.randn(3, 40)]
    x, w = leaves[:2]
    torch.manual_seed(3)
    mask = chain(x, [Layer(torch.zeros_like(w), torch.ones_like(w[:, 0]), dropout=0.5)]) / 2
    assert 0.2 < mask.mean() < 0.8

    def ours(x: Tensor, w: Tensor, v: Tensor) -> Tensor:
        torch.manual_seed(3)
        return chain(x, [Layer(w, None, resolve("tanh"), 0.5), Layer(v, None)])

    def torchs(x: Tensor, w: Tensor, v: Tensor) -> Tensor:
        return (F.linear(x, w).tanh() * mask.to(x.dtype) * 2) @ v.t()

    same_or_as_good(*Problem(ours, torchs, leaves).run(second), "triton", "dropout")
