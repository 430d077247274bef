"""Public functions: values on both backends, and errors that name the argument."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastmlp import backends
from fastmlp.activations import NAMES, TABLE, Act
from fastmlp.functional import linear_act, mlp


@pytest.fixture(params=["torch", "triton"], autouse=True)
def _backend(request: pytest.FixtureRequest):
    with backends.use(request.param):
        yield


@pytest.mark.parametrize("name", [name for name in NAMES if name != "prelu"])
def test_linear_act_by_name(name: str, device: str) -> None:
    x, w, b = (torch.randn(s, device=device) for s in ((2, 3, 5), (4, 5), (4,)))
    module = nn.GELU("tanh") if name == "gelu_tanh" else TABLE[name].module()
    torch.testing.assert_close(linear_act(x, w, b, name), module(F.linear(x, w, b)), rtol=1e-5, atol=1e-6)


def test_prelu_of_several_slopes_acts_on_dimension_1(device: str) -> None:
    """As torch's: for (N, C, L) inputs the slopes belong to C, not to the features."""
    x, w = torch.randn(2, 3, 5, device=device), torch.randn(3, 5, device=device)
    module = nn.PReLU(3).to(device)
    with torch.no_grad():
        module.weight.copy_(torch.tensor([0.1, 0.5, -0.3]))
    torch.testing.assert_close(linear_act(x, w, None, module), module(F.linear(x, w)), rtol=1e-5, atol=1e-6)


def test_mlp_has_no_activation_after_the_last_layer(device: str) -> None:
    x, w1, w2, b1 = (torch.randn(s, device=device) for s in ((6, 5), (4, 5), (3, 4), (4,)))
    expected = F.linear(F.linear(x, w1, b1).tanh(), w2)
    torch.testing.assert_close(mlp(x, [w1, w2], [b1, None], "tanh"), expected, rtol=1e-5, atol=1e-6)
    assert mlp(x, [w1, w2]).shape == (6, 3)
    with_one = mlp(x, [w1, w2], [b1, None], "tanh", output_activation="sigmoid")
    torch.testing.assert_close(with_one, expected.sigmoid(), rtol=1e-5, atol=1e-6)


DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
X, W, B = (torch.randn(shape, device=DEVICE) for shape in ((6, 5), (4, 5), (4,)))


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ((X[0, 0], W, B), ValueError, r"input: expected \(\.\.\., features\), got a scalar"),
        (
            (X[:, :3], W, B),
            ValueError,
            r"weight: expected \(N, 3\) to fit input \(6, 3\), got \(4, 5\)",
        ),
        ((X, X[0], B), ValueError, r"weight: expected \(N, 5\) .* got \(5,\)"),
        ((X, W[None], B), ValueError, r"weight: expected .* got \(1, 4, 5\)"),
        ((X, W, X[0]), ValueError, r"bias: expected \(4,\), got \(5,\)"),
        ((X, W, B[:, None]), ValueError, r"bias: expected \(4,\), got \(4, 1\)"),
        ((X, W.long(), B), TypeError, r"input and weight: expected floating dtypes, got .*int64"),
        ((X.long(), W, B), TypeError, r"input and weight: expected floating dtypes, got torch\.int64"),
        ((X, W.double(), B), TypeError, r"weight: expected torch\.float32 as the input, got torch\.float64"),
        ((X, W, B.half()), TypeError, r"bias: expected torch\.float32 as the input, got torch\.float16"),
        ((X, W.to("meta"), B), RuntimeError, r"weight: expected on \S+ as the input, got meta"),
        ((X, W, B, "swish"), ValueError, r"activation: 'swish' is not one of"),
        (
            (X, W, B, nn.PReLU(3, device=DEVICE)),
            ValueError,
            r"activation: PReLU's weight has 3 slopes for 4 features",
        ),
        (
            (X, W, B, Act(TABLE["prelu"], weight=B[None])),
            ValueError,
            r"activation: PReLU's weight: expected \(\) or \(slopes,\), got \(1, 4\)",
        ),
    ],
)
def test_bad_input(arguments: tuple, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        linear_act(*arguments)


def test_bad_lists() -> None:
    with pytest.raises(ValueError, match="weights, biases: expected one of each a layer, got 2 and 1"):
        mlp(X, [W, W], [B])
    with pytest.raises(ValueError, match="weights, biases"):
        mlp(X, [])
    with pytest.raises(ValueError, match=r"weight of layer 1: expected \(N, 4\) to fit layer 0, 4 features"):
        mlp(X, [W, W])


def test_errors_are_torchs_and_pythons() -> None:
    """Who expects torch's RuntimeError of a wrong shape or dtype catches ours."""
    x, w = torch.randn(3, 4), torch.randn(5, 4)
    for error in (RuntimeError, ValueError):
        with pytest.raises(error, match="weight: expected"):
            linear_act(x[:, :3], w)
    for error in (RuntimeError, TypeError):
        with pytest.raises(error, match=r"weight: expected torch\.float32"):
            linear_act(x, w.double())


class Functional(nn.Module):
    """Layers by the functional forms, the input of one of them a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Parameter(torch.randn(7, 5)), nn.Parameter(torch.randn(3, 7))
        self.bias = nn.Parameter(torch.randn(7))

    def forward(self, x: Tensor) -> Tensor:
        y = mlp(x, [self.first, self.last], [self.bias, None], "tanh")
        return y + linear_act(torch.ones(3, 5), self.first).sum()


def test_symbolic_trace() -> None:
    """The graph has the call, whichever argument is known as it is made."""
    net, x = Functional(), torch.randn(4, 5)
    traced = torch.fx.symbolic_trace(net)
    assert [n.name for n in traced.graph.nodes if n.op == "call_function"][:2] == ["mlp", "linear_act"]
    assert torch.equal(traced(x), net(x))
