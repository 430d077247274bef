"""fastmlp.MLP where it is not torchvision's; for the rest see tests/compatibility/test_modules_peers.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import fastmlp
from fastmlp import backends

torchvision_ops = pytest.importorskip("torchvision.ops", reason="torchvision is the peer")


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
