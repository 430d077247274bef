"""fuse swaps the Sequentials inside a model and nothing else."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

import fastmlp


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        shared = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
        self.first, self.second = shared, shared
        self.nested = nn.ModuleList([nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Tanh()))])
        self.other = Odd(nn.Linear(4, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.other(self.nested[0](self.second(self.first(x))))


class Odd(nn.Sequential):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return -super().forward(input)


def test_everything_but_the_class_stays() -> None:
    model = Model().eval()
    calls: list[int] = []
    model.first.register_forward_hook(lambda m, i, o: calls.append(1))
    before = copy.deepcopy(model)
    parameters = list(model.parameters())
    assert fastmlp.fuse(model) is model
    assert type(model.first) is fastmlp.Sequential
    assert model.first is model.second
    assert type(model.nested[0][1]) is fastmlp.Sequential
    assert type(model.other) is Odd
    assert all(a is b for a, b in zip(parameters, model.parameters()))
    assert not model.first.training
    x = torch.randn(3, 4)
    assert torch.equal(model(x), before(x))
    assert calls == [1, 1, 1, 1]
    assert list(model.state_dict()) == list(before.state_dict())


def test_a_sequential_itself() -> None:
    net = fastmlp.fuse(nn.Sequential(nn.Linear(4, 2)))
    assert type(net) is fastmlp.Sequential


def test_torchvisions_mlp() -> None:
    ops = pytest.importorskip("torchvision.ops", reason="torchvision is the peer")
    net = ops.MLP(4, [3, 2])
    x = torch.randn(5, 4)
    expected = net(x)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    assert type(fastmlp.fuse(net)) is fastmlp.MLP
    assert torch.equal(net(x), expected)
    before = net[0].weight.clone()
    net(x).sum().backward()
    optimizer.step()
    assert not torch.equal(net[0].weight, before)
    assert torch.equal(pickle.loads(pickle.dumps(net))(x), net(x))


def test_twice_is_once() -> None:
    net = fastmlp.fuse(nn.Sequential(nn.Linear(4, 2)))
    assert fastmlp.fuse(net) is net
    assert type(net) is fastmlp.Sequential


def test_no_module() -> None:
    with pytest.raises(TypeError, match=r"module: expected an nn\.Module, got int"):
        fastmlp.fuse(3)  # type: ignore[type-var]
