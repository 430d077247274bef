"""Gradients where they are wanted: part of the tensors, hooks, accumulation, any upstream gradient."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fastmlp
from fastmlp.functional import linear_act, mlp
from fastmlp.kernels import launch
from tests.compatibility.compare import same_or_as_good
from tests.compatibility.nets import agree, all_grads, losses, rows_of

GROUP = "Autograd"


@pytest.mark.feature(GROUP, "gradients that accumulate")
def test_accumulation(backend: str, dtype: torch.dtype, device: str) -> None:
    def run(net: nn.Sequential, x: Tensor, _: torch.dtype) -> list[Tensor]:
        for part in x.split([1, 3, 2]):
            net(part).square().sum().backward()
        kept = [p.grad for p in net.parameters()]
        net(x).sum().backward()
        assert all(a is p.grad for a, p in zip(kept, net.parameters())), "not in place"
        return all_grads(net, x)

    agree(run, backend, dtype, device)


@pytest.mark.feature(GROUP, "some tensors alone require grad")
@pytest.mark.parametrize("wanted", range(1, 8))
def test_partial(wanted: int, backend: str, dtype: torch.dtype, device: str) -> None:
    """Every subset of input, weight and bias: gradients there, None elsewhere."""
    data = [rows_of(dtype, device), torch.randn(4, 5, device=device).to(dtype)]
    data.append(torch.randn(4, device=device).to(dtype))
    runs = []
    for kind, ours in ((dtype, True), (dtype, False), (torch.float64, False)):
        tensors = [t.to(kind, copy=True).requires_grad_(bool(wanted >> i & 1)) for i, t in enumerate(data)]
        y = linear_act(*tensors, "sigmoid") if ours else F.linear(*tensors).sigmoid()
        y.sum().backward()
        assert [t.grad is not None for t in tensors] == [bool(wanted >> i & 1) for i in range(3)]
        runs.append([y, *(t.grad for t in tensors if t.grad is not None)])
    same_or_as_good(*runs, backend, "result")


@pytest.mark.feature(GROUP, "hooks on tensors")
def test_tensor_hooks(backend: str, dtype: torch.dtype, device: str) -> None:
    """On leaves, between stages, and after a gradient is accumulated; one may replace the gradient."""

    def run(net: nn.Sequential, x: Tensor, _: torch.dtype) -> list[Tensor]:
        seen: list[Tensor] = []
        weight = net[0].weight
        weight.register_hook(lambda g: seen.append(g) or 2 * g)
        net[3].bias.register_post_accumulate_grad_hook(lambda p: seen.append(p.grad.clone()))
        hidden = net[:2](x)
        hidden.register_hook(lambda g: 3 * g)
        hidden.retain_grad()
        net[3:](hidden).square().sum().backward()
        assert len(seen) == 2
        return [*seen, hidden.grad, *all_grads(net, x)]  # type: ignore[list-item]

    agree(run, backend, dtype, device)


@pytest.mark.feature(GROUP, "an optimizer step in a post-accumulate hook")
def test_step_in_backward(backend: str, dtype: torch.dtype, device: str) -> None:
    def run(net: nn.Sequential, x: Tensor, _: torch.dtype) -> list[Tensor]:
        for p in net.parameters():
            optimizer = torch.optim.SGD([p], lr=0.5)

            def step(p: Tensor, optimizer: torch.optim.Optimizer = optimizer) -> None:
                optimizer.step()
                optimizer.zero_grad()

            p.register_post_accumulate_grad_hook(step)
        for _ in range(2):
            net(x).square().mean().backward()
        return [p.detach() for p in net.parameters()]

    agree(run, backend, dtype, device)


@pytest.mark.feature(GROUP, "weights that are no leaves")
def test_non_leaf_weights(backend: str, dtype: torch.dtype, device: str) -> None:
    """A weight that another net makes, or a view of a larger one."""
    data = [rows_of(dtype, device), torch.randn(8, 5, device=device).to(dtype)]
    runs = []
    for kind, ours in ((dtype, True), (dtype, False), (torch.float64, False)):
        x, base = (t.to(kind, copy=True).requires_grad_() for t in data)
        first, second = base[::2].tanh(), base[4:, :4] * x.mean()
        if ours:
            y = mlp(x, [first, second], activation="silu")
        else:
            y = F.linear(F.silu(F.linear(x, first)), second)
        y.square().sum().backward()
        runs.append([y, x.grad, base.grad])
    same_or_as_good(*runs, backend, "result")


@pytest.mark.feature(GROUP, "undefined and missing upstream gradients")
def test_undefined_upstream(backend: str, dtype: torch.dtype, device: str) -> None:
    """A loss that does not depend on a result, and a function that gives its gradient as None."""

    class Swallow(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, y: Tensor) -> Tensor:
            return y.clone()

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> None:
            return None

    for name, (function, x) in losses(device, dtype).items():
        leaf = x.clone().requires_grad_()
        value = function(leaf)
        (Swallow.apply(value) + leaf.sum()).backward()
        assert torch.equal(leaf.grad, torch.ones_like(leaf)), name  # type: ignore[arg-type]
        grads = torch.autograd.grad(leaf.sum() + 0 * value.detach(), (leaf, value), allow_unused=True)
        assert grads[1] is None


@pytest.mark.feature(GROUP, "upstream gradients of any layout")
def test_upstream_layouts(backend: str, dtype: torch.dtype, device: str) -> None:
    """Expanded, transposed, zero."""

    def run(net: nn.Sequential, x: Tensor, kind: torch.dtype) -> list[Tensor]:
        found = []
        wide = torch.arange(24, device=device).to(kind) / 8
        for up in (
            wide[:1].expand(6, 4),
            wide.view(4, 6).t(),
            wide[:6, None].expand(6, 4),
            0 * wide.view(6, 4),
        ):
            found += torch.autograd.grad(net(x), [x, *net.parameters()], up)
        return found

    agree(run, backend, dtype, device)


@pytest.mark.feature(GROUP, "complex tensors, with autocast or without")
def test_complex(backend: str, device: str) -> None:
    """They are torch's own ops'."""
    net = fastmlp.Sequential(nn.Linear(5, 4), nn.Tanh()).to(device, torch.complex64)
    x = torch.randn(6, 5, device=device, dtype=torch.complex64, requires_grad=True)
    for autocast in (False, True):
        with torch.autocast(device, torch.bfloat16, enabled=autocast):
            expected = nn.Sequential(*net)(x)
            assert torch.equal(net(x), expected)
            assert torch.equal(linear_act(x, net[0].weight, net[0].bias, "tanh"), expected)
        net(x).abs().sum().backward()
    with pytest.raises(TypeError, match="input and weight: expected floating dtypes"):
        linear_act(x, net[0].weight.real)


@pytest.mark.few(2)
@pytest.mark.feature(GROUP, "memory: a graph holds nothing when it is gone")
def test_no_cycles(backend: str, dtype: torch.dtype, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No node refers to itself: the input is freed without the garbage collector."""
    for function, x in losses(device, dtype).values():
        function(x)  # whose launches are on record; a record holds its tensors
    monkeypatch.setattr(launch, "_observers", [])
    gc.collect()
    gc.disable()
    try:
        for name, (function, x) in losses(device, dtype).items():
            leaf = x.clone().requires_grad_()
            alive = weakref.ref(leaf)
            function(leaf * 1.0).backward()
            value = function(leaf)
            del leaf, value
            assert alive() is None, name
    finally:
        gc.enable()
