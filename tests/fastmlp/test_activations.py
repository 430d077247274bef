"""The table: names, modules and derivatives agree with torch."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fastmlp.activations import NAMES, NONE, TABLE, Act, from_module, resolve

MODULES = [
    (nn.Identity(), "none"),
    (nn.ReLU(), "relu"),
    (nn.ReLU(inplace=True), "relu"),
    (nn.LeakyReLU(0.3), "leaky_relu"),
    (nn.Sigmoid(), "sigmoid"),
    (nn.Tanh(), "tanh"),
    (nn.GELU(), "gelu"),
    (nn.GELU(approximate="tanh"), "gelu_tanh"),
    (nn.SiLU(), "silu"),
    (nn.PReLU(init=0.2), "prelu"),
]


@pytest.mark.parametrize(("module", "name"), MODULES, ids=str)
def test_module_and_row_compute_the_same(module: nn.Module, name: str) -> None:
    act = from_module(module)
    assert act is not None
    assert act.name == name
    z = torch.randn(7, 5)
    torch.testing.assert_close(act(z), module(z.clone()), rtol=0, atol=0)
    torch.testing.assert_close(act.write_over(z.clone()), module(z.clone()), rtol=0, atol=0)


def test_every_row_has_a_module() -> None:
    assert {name for _, name in MODULES} == set(NAMES)


@pytest.mark.parametrize(("module", "name"), MODULES, ids=str)
@pytest.mark.parametrize("slope", [0.3, -0.3])
def test_derivative_is_autograds(module: nn.Module, name: str, slope: float) -> None:
    """From what the row says is saved; a leaky slope below 0 switches from output to input."""
    act = Act(TABLE[name], slope) if name == "leaky_relu" else from_module(module.double())
    assert act is not None
    z = torch.randn(50, dtype=torch.float64, requires_grad=True)
    y = act(z)
    saved = y if act.saves_output else z
    (exact,) = torch.autograd.grad(y.sum(), z)
    torch.testing.assert_close(act.derivative(saved.detach()), exact)


def test_unknown_activations_are_refused() -> None:
    with pytest.raises(ValueError, match="activation: 'swish'"):
        resolve("swish")
    with pytest.raises(ValueError, match="activation: Softmax"):
        resolve(nn.Softmax(-1))
    with pytest.raises(ValueError, match="activation: GELU"):
        resolve(nn.GELU(approximate="erf"))  # torch refuses it where it is called
    with pytest.raises(ValueError, match=r"nn\.PReLU"):
        resolve("prelu")
    assert resolve(None) is NONE
    assert resolve("leaky_relu").slope == nn.LeakyReLU().negative_slope


def test_a_subclass_is_not_taken_for_its_base() -> None:
    class Odd(nn.ReLU):
        pass

    assert from_module(Odd()) is None
