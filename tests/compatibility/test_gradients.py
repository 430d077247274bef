"""Autograd as its users meet it: hooks, steps in a backward, complex numbers, dropout, inference tensors."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import fastmlp
from fastmlp.functional import cross_entropy, linear_act
from tests.compatibility.nets import TARGET, agree, all_grads, children, rows_of
from tests.compatibility.page import Refusal

GROUP = "Autograd"


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


@pytest.mark.feature(GROUP, "torch.utils.checkpoint with dropout")
@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoint_with_dropout(reentrant: bool, backend: str, dtype: torch.dtype, device: str) -> None:
    """The recomputed forward draws the first one's masks: bit for bit the gradients without a checkpoint."""
    found = []
    for wrapped in (False, True):
        net = fastmlp.Sequential(*children(dtype, device, dropout=0.5))
        x = rows_of(dtype, device).requires_grad_()
        torch.manual_seed(5)
        y = checkpoint(net, x, use_reentrant=reentrant) if wrapped else net(x)
        torch.manual_seed(99)  # what happens between forward and backward
        y.square().sum().backward()
        found.append([y, *all_grads(net, x)])
    assert all(map(torch.equal, *found))


@pytest.mark.feature(GROUP, "inference tensors in autograd")
def test_inference_tensors(backend: str, dtype: torch.dtype, device: str, refuses: Refusal) -> None:
    """They cannot be saved for a backward, and torch says so; a clone can, and without grad all is well."""
    made = children(dtype, device)
    net, plain = fastmlp.Sequential(*made), nn.Sequential(*made)
    with torch.inference_mode():
        x = rows_of(dtype, device)
        frozen = torch.randn(4, 5, device=device).to(dtype)
    leaf = rows_of(dtype, device).requires_grad_()
    for function in (lambda: net(x), lambda: linear_act(leaf, frozen, None, "tanh"), lambda: plain(x)):
        with refuses(RuntimeError, "Inference tensors cannot be saved for backward"):
            function()
    net(x.clone()).sum().backward()
    with torch.no_grad():
        torch.testing.assert_close(net(x), plain(x), rtol=2e-2, atol=2e-2)
    cross_entropy(net(x.clone()), torch.tensor(TARGET, device=device)).backward()
