"""fastmlp.MLP against torchvision's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import fastmlp
from fastmlp import backends

torchvision_ops = pytest.importorskip("torchvision.ops", reason="torchvision is the peer")

CONFIGS: list[dict[str, Any]] = [
    {},
    {"activation_layer": nn.GELU},
    {"activation_layer": nn.LeakyReLU, "inplace": True, "dropout": 0.3},
    {"norm_layer": nn.BatchNorm1d, "bias": False},
    {"norm_layer": nn.LayerNorm, "activation_layer": nn.Tanh},
    {"activation_layer": nn.SiLU, "dropout": 0.5, "bias": False},
    {"activation_layer": nn.PReLU},
]


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_same_as_torchvision(config: dict[str, Any], backend: str, device: str) -> None:
    """Children, keys both ways, and outputs in training and evaluation."""
    theirs = torchvision_ops.MLP(12, [8, 7, 3], **config).to(device)
    ours = fastmlp.MLP(12, [8, 7, 3], **config).to(device)
    assert repr(ours) == repr(theirs)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    x = torch.randn(6, 12, device=device)
    with backends.use(backend):
        for mode in (True, False):
            outputs = []
            for net in (theirs.train(mode), ours.train(mode)):
                torch.manual_seed(0)
                outputs.append(net(x))
            if backend == "triton" and mode and config.get("dropout"):
                continue  # the kernels draw masks of their own
            torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-4, atol=1e-5)


def test_what_torchvision_has_not() -> None:
    net = fastmlp.MLP(12, [8, 3], activation_layer=None, flatten=True, dtype=torch.float64)
    assert list(net.state_dict()) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert net(torch.ones(2, 3, 4, dtype=torch.float64)).shape == (2, 3)
    assert next(fastmlp.MLP(4, [2], device="meta").parameters()).device.type == "meta"


def test_one_layer_is_the_output() -> None:
    theirs, ours = torchvision_ops.MLP(5, [3]), fastmlp.MLP(5, [3])
    assert repr(ours) == repr(theirs)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = torch.randn(2, 5)
    assert torch.equal(ours(x), theirs(x))


@pytest.mark.parametrize("flatten", [False, True])
def test_the_head_serves_it(flatten: bool, device: str) -> None:
    """Its last dropout is the identity, and flattening is no child that stands before the chain."""
    net = fastmlp.MLP(12, [8, 3], flatten=flatten).to(device)
    x = torch.randn((6, 3, 4) if flatten else (6, 12), device=device)
    y, loss = torch.randint(3, (6,), device=device), fastmlp.CrossEntropyLoss()
    with backends.use("triton"):
        fused = net.cross_entropy(x, y, loss)
        assert fused is not None
        grads = torch.autograd.grad(fused[0], list(net.parameters()))
        expected = loss(net(x), y)
        torch.testing.assert_close(fused[0], expected, rtol=1e-5, atol=1e-6)
        for a, b in zip(grads, torch.autograd.grad(expected, list(net.parameters()))):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
        assert Shifted(12, [8, 3]).to(device).cross_entropy(x, y, loss) is None


class Shifted(fastmlp.MLP):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input) + 1


def test_no_sequence_of_widths() -> None:
    with pytest.raises(TypeError, match="hidden_channels: expected a sequence of widths, got 3"):
        fastmlp.MLP(12, 3)  # type: ignore[arg-type]


@pytest.mark.parametrize(("width", "hidden"), [(12, []), (0, [3]), (12, [3, -1]), (12, [2.5]), (12, "ab")])
def test_bad_widths(width: int, hidden: Any) -> None:
    with pytest.raises(ValueError, match="in_channels, hidden_channels: expected positive widths"):
        fastmlp.MLP(width, hidden)
