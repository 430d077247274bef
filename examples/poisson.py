"""A physics-informed network: -Δu = f on the unit square, u = 0 on its edge, with a known solution.

The loss holds second derivatives of the net, so that training takes third ones.

python examples/poisson.py
"""

from __future__ import annotations

import math

import torch
import typer
from torch import Tensor, nn

import fastmlp


def exact(x: Tensor) -> Tensor:
    """The solution for f = 2 π² sin(π x) sin(π y); x (N, 2)."""
    return torch.sin(math.pi * x[:, 0]) * torch.sin(math.pi * x[:, 1])


def solution(net: nn.Module, x: Tensor) -> Tensor:
    """u at x (N, 2): the net times a factor that is 0 on the edge."""
    return net(x)[:, 0] * (x * (1 - x)).prod(1) * 16


def laplacian(net: nn.Module, x: Tensor) -> Tensor:
    """Δu at x (N, 2), which requires grad."""
    (gradient,) = torch.autograd.grad(solution(net, x).sum(), x, create_graph=True)
    parts = [torch.autograd.grad(gradient[:, i].sum(), x, create_graph=True)[0][:, i] for i in (0, 1)]
    return parts[0] + parts[1]


def main(steps: int = 5, points: int = 128, width: int = 16, seed: int = 0) -> None:
    """Train the net on random points, and compare it with the solution."""
    torch.manual_seed(seed)
    net = fastmlp.MLP(2, [width, width, 1], activation_layer=nn.Tanh)
    x = torch.rand(points, 2, requires_grad=True)
    source = 2 * math.pi**2 * exact(x.detach())
    optimizer = torch.optim.LBFGS(net.parameters(), line_search_fn="strong_wolfe")

    def residual() -> Tensor:
        optimizer.zero_grad()
        loss = (laplacian(net, x) + source).square().mean()
        loss.backward()
        return loss

    for step in range(1, steps + 1):
        loss = optimizer.step(residual)
        print(f"step {step:3d}  residual {loss.item():.1e}")
    side = torch.linspace(0, 1, 65)
    grid = torch.cartesian_prod(side, side)
    with torch.no_grad():
        found = solution(net, grid)
    print(f"relative error {((found - exact(grid)).norm() / exact(grid).norm()).item():.1e}")


if __name__ == "__main__":
    typer.run(main)
