"""LinearAct is an nn.Linear with an activation behind it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fastmlp
from fastmlp import backends


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_values_and_parameters(backend: str, device: str) -> None:
    layer = fastmlp.LinearAct(5, 4, activation=nn.PReLU(4), device=device).to(device)
    assert isinstance(layer, nn.Linear)
    assert list(layer.state_dict()) == ["weight", "bias", "activation.weight"]
    x = torch.randn(6, 5, device=device)
    with backends.use(backend):
        y = layer(x)
        grads = torch.autograd.grad(y.sum(), list(layer.parameters()))
    expected = layer.activation(nn.functional.linear(x, layer.weight, layer.bias))
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-6)
    for a, b in zip(grads, torch.autograd.grad(expected.sum(), list(layer.parameters()))):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_starts_as_linear_does() -> None:
    torch.manual_seed(0)
    ours = fastmlp.LinearAct(5, 4, bias=False, activation="tanh")
    torch.manual_seed(0)
    theirs = nn.Linear(5, 4, bias=False)
    assert torch.equal(ours.weight, theirs.weight)
    assert ours.bias is None
    assert repr(ours) == "LinearAct(in_features=5, out_features=4, bias=False, activation='tanh')"


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_hooks_of_the_activation_count(backend: str, device: str) -> None:
    act = nn.ReLU()
    layer = fastmlp.LinearAct(5, 4, activation=act, device=device)
    x = torch.randn(6, 5, device=device)
    with backends.use(backend):
        expected = layer(x) * 2
        act.register_forward_hook(lambda m, i, o: o * 2)
        torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-6)


def test_the_slopes_follow_dtype() -> None:
    layer = fastmlp.LinearAct(5, 4, activation=nn.PReLU(), dtype=torch.float64)
    assert layer(torch.ones(2, 5, dtype=torch.float64)).dtype == torch.float64


def test_unknown_activation() -> None:
    with pytest.raises(ValueError, match="activation: 'swish'"):
        fastmlp.LinearAct(5, 4, activation="swish")
