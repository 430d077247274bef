"""``torch.jit.script`` of the modules of layers: torch's own ops, eager's values, the same keys."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fastmlp
from fastmlp.activations import NAMES

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")


class Net(nn.Module):
    """One that holds ours."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp = fastmlp.MLP(5, [7, 3])
        self.last = fastmlp.LinearAct(3, 2, activation=nn.PReLU())

    def forward(self, x):  # TorchScript reads no annotation that is a string
        return self.last(self.mlp(x))


MODULES = {
    "Sequential": lambda: fastmlp.Sequential(
        fastmlp.Dequantize(0.5, 0.1), nn.Linear(5, 7), nn.ReLU(), fastmlp.Sequential(nn.Linear(7, 3))
    ),
    "an empty Sequential": fastmlp.Sequential,
    "MLP": lambda: fastmlp.MLP(5, [7, 3], flatten=True, norm_layer=nn.LayerNorm),
    "a module of one's own": Net,
    "no activation": lambda: fastmlp.LinearAct(5, 4, bias=False, activation=None),
    "a module as activation": lambda: fastmlp.LinearAct(5, 4, activation=nn.PReLU(4)),
} | {name: lambda name=name: fastmlp.LinearAct(5, 4, activation=name) for name in NAMES if name != "prelu"}


@pytest.mark.parametrize("name", MODULES)
def test_script(name: str) -> None:
    module, x = MODULES[name](), torch.randn(6, 5)
    scripted = torch.jit.script(module)
    assert list(scripted.state_dict()) == list(module.state_dict())
    found: list[list[Tensor]] = []
    for net in (module, scripted):
        y = net(x)
        params = list(net.parameters())
        found.append([y, *(torch.autograd.grad(y.square().sum(), params) if params else ())])
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*found))
    assert not any(isinstance(child, torch.jit.ScriptModule) for child in module.modules())
