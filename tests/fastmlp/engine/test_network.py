"""Which models are chains that an engine can run as a whole."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

import fastmlp
from fastmlp.backends.base import SquaredError
from fastmlp.engine.network import Network, recognise


def plain() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


@pytest.mark.parametrize(
    "model",
    [
        plain(),
        fastmlp.fuse(plain()),
        fastmlp.MLP(6, [8, 3]),
        nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.0), nn.GELU("tanh"), nn.Sequential(nn.Linear(8, 3))),
        nn.Sequential(nn.Linear(6, 8, bias=False), nn.Identity(), nn.Linear(8, 3)),
    ],
    ids=lambda m: type(m).__name__,
)
def test_chains(model: nn.Module) -> None:
    found = recognise(model, nn.CrossEntropyLoss())
    assert isinstance(found, Network)
    assert found.widths == (6, 8, 3)
    assert {id(p) for p in found.parameters} == {id(p) for p in model.parameters()}
    assert not found.flatten


def test_flatten() -> None:
    for model in (nn.Sequential(nn.Flatten(), *plain()), fastmlp.MLP(6, [8, 3], flatten=True)):
        found = recognise(model, nn.CrossEntropyLoss())
        assert isinstance(found, Network)
        assert found.flatten


def test_torchvisions_mlp() -> None:
    ops = pytest.importorskip("torchvision.ops")
    assert isinstance(recognise(ops.MLP(6, [8, 3]), nn.CrossEntropyLoss()), Network)


def test_the_loss_options() -> None:
    weight = torch.rand(3)
    loss = fastmlp.CrossEntropyLoss(weight, ignore_index=1, reduction="sum", label_smoothing=0.1, z_loss=0.01)
    found = recognise(plain(), loss)
    assert isinstance(found, Network)
    assert found.options == (1, "sum", 0.1, 0.01)
    assert found.class_weight is weight


@pytest.mark.parametrize("kind", [nn.MSELoss, fastmlp.MSELoss])
def test_the_squared_error(kind: type[nn.MSELoss]) -> None:
    found = recognise(plain(), kind(reduction="sum"))
    assert isinstance(found, Network)
    assert found.options == SquaredError("sum")
    assert found.class_weight is None


class Other(nn.Sequential):
    pass


class OtherLoss(nn.CrossEntropyLoss):
    pass


class OtherSquaredError(nn.MSELoss):
    pass


def changed(change: Callable[[nn.Sequential], object]) -> nn.Module:
    model = plain()
    change(model)
    return model


def freeze(model: nn.Sequential) -> None:
    model[0].bias.requires_grad_(False)


def tie(model: nn.Sequential) -> None:
    model.insert(2, nn.Linear(8, 8))
    model.insert(3, nn.Linear(8, 8))
    model[3].weight = model[2].weight


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (Other(*plain()), "Other is no Sequential"),
        (nn.Linear(6, 3), "Linear is no Sequential"),
        (nn.Sequential(*plain(), nn.ReLU()), "last layer has an activation"),
        (nn.Sequential(nn.Linear(6, 8), nn.PReLU(), nn.Linear(8, 3)), "PReLU"),
        (nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)), "no single chain"),
        (nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 3)), "a dropout is active"),
        (nn.Sequential(), "no single chain"),
        (nn.Sequential(nn.Linear(6, 8), nn.Linear(7, 3)), "widths do not fit"),
        (changed(lambda m: m.double()), "float64"),
        (changed(freeze), "frozen"),
        (changed(tie), "share a parameter"),
        (changed(lambda m: m.register_forward_hook(lambda *_: None)), "hooks"),
        (changed(lambda m: m[1].register_forward_hook(lambda *_: None)), "no single chain"),
        (changed(lambda m: m.compile()), "the model is compiled"),
        (changed(lambda m: weight_norm(m[0])), "no single chain"),
        (changed(lambda m: m[0].weight.register_hook(lambda g: g)), "gradient hooks"),
    ],
)
def test_reasons(model: nn.Module, words: str) -> None:
    reason = recognise(model, nn.CrossEntropyLoss())
    assert isinstance(reason, str)
    assert words in reason


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        (nn.L1Loss(), "no plain CrossEntropyLoss or MSELoss"),
        (OtherSquaredError(), "OtherSquaredError may be another loss than MSELoss"),
        (nn.MSELoss(reduction="none"), "reduction is 'none'"),
        (OtherLoss(), "OtherLoss"),
        (nn.CrossEntropyLoss(reduction="none"), "reduction is 'none'"),
        (nn.CrossEntropyLoss(nn.Parameter(torch.rand(3))), "class weights want a gradient"),
    ],
)
def test_reasons_of_the_loss(loss: nn.Module, words: str) -> None:
    assert words in str(recognise(plain(), loss))
