"""What fuse says of what it did: what it swapped, what it left and why."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fastmlp


class Block(nn.Module):
    """As transformers writes an MLP: linear layers as attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_proj, self.down_proj = nn.Linear(4, 8), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(torch.relu(self.gate_proj(x)))


class Odd(nn.Sequential):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return -super().forward(input)


class Mine(nn.Linear):
    pass


def model() -> nn.ModuleDict:
    hooked = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4))
    hooked[2].register_forward_hook(lambda m, i, o: None)
    return nn.ModuleDict(
        {
            "net": nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Sequential(nn.Linear(8, 2))),
            "conv": nn.Sequential(nn.Conv2d(1, 1, 3)),
            "blocks": nn.ModuleList([Block() for _ in range(5)]),
            "odd": Odd(nn.Linear(4, 2), nn.Sequential(nn.Linear(2, 2), nn.Tanh())),
            "hooked": hooked,
            "mine": nn.Sequential(Mine(4, 4)),
            "weighted": nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 3))),
            "ours": fastmlp.MLP(3, [2]),
            "head": fastmlp.LinearAct(4, 2),
        }
    )


def test_what_is_swapped_and_what_is_left() -> None:
    made = model()
    report = fastmlp.fuse(made, report=True)
    assert report.model is made
    assert report.swapped == (
        ("net", "Sequential, 4-8-2"),
        ("net.2", "Sequential, 8-2"),
        ("conv", "Sequential, no linear layers to fuse"),
        ("odd.1", "Sequential, 2-2"),
        ("hooked", "Sequential, 4-8"),
        ("mine", "Sequential, no linear layers to fuse"),
        ("weighted", "Sequential, no linear layers to fuse"),
    )
    calls = "Block: no Sequential runs its linear layers (gate_proj, down_proj)"
    assert report.left == (
        *((f"blocks.{i}", calls) for i in range(5)),
        ("odd", "Odd: this subclass of nn.Sequential may have a forward of its own"),
        ("hooked.2", "Linear: has hooks, or a forward that is not nn.Linear's"),
        ("mine.0", "Mine: not an nn.Linear itself"),
        ("weighted.0", "ParametrizedLinear: not an nn.Linear itself"),
    )
    assert repr(report) == "<fuse: 7 swapped, 1 fused already, 9 left>"
    assert f"  blocks.0 and 4 more: left: {calls}\n" in str(report)  # the same is said once
    assert "<script" not in report._repr_html_()
    again = fastmlp.fuse(made, report=True)
    assert again.swapped == ()
    assert again.left == report.left
    assert (report.already, {*again.already}) == (("ours",), {"ours", *(name for name, _ in report.swapped)})


def test_a_model_that_is_one_module() -> None:
    assert fastmlp.fuse(nn.Sequential(nn.Linear(4, 2)), report=True).rows() == [
        ("the model itself", "swapped: Sequential, 4-2")
    ]
    assert [name for name, why in fastmlp.fuse(nn.Linear(4, 2), report=True).left] == [""]
    compiled = nn.Linear(4, 2)
    compiled.compile()
    assert fastmlp.fuse(nn.Sequential(compiled), report=True).left == (("0", "Linear: is compiled"),)


def test_timms_mlp() -> None:
    layers = pytest.importorskip("timm.layers", reason="timm is the peer")
    report = fastmlp.fuse(nn.ModuleList([layers.Mlp(4, 8), layers.GatedMlp(4, 8)]), report=True)
    assert report.swapped == (("0", "TimmMlp, 4-8-4"),)
    assert [name for name, why in report.left] == ["1"]
