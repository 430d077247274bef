"""A snapshot holds until something that an engine must know has changed."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils import parametrize

import fastmlp
from fastmlp import backends
from fastmlp.engine.network import Network, recognise
from fastmlp.engine.snapshot import Snapshot


def made() -> tuple[nn.Sequential, nn.CrossEntropyLoss]:
    """A single class: a bias of one element calls itself equal to its twin."""
    model = nn.Sequential(nn.Linear(6, 8), nn.LeakyReLU(), nn.Dropout(0.5), nn.Linear(8, 1))
    return model.eval(), nn.CrossEntropyLoss(torch.ones(1))


class Doubled(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * x


def set_data(m: nn.Sequential, data: torch.Tensor) -> None:
    m[0].weight.data = data


CHANGES: dict[str, Callable[[nn.Sequential, nn.CrossEntropyLoss], object]] = {
    "a child": lambda m, _: setattr(m, "1", nn.LeakyReLU()),
    "a child more": lambda m, _: m.append(nn.ReLU()),
    "a child less": lambda m, _: m.pop(2),
    "a forward": lambda m, _: setattr(m[1], "forward", torch.relu),
    "a type": lambda m, _: setattr(m[1], "__class__", nn.ReLU),
    "a parameter's type": lambda m, _: setattr(m[0].weight, "__class__", type("Own", (nn.Parameter,), {})),
    "a slope": lambda m, _: setattr(m[1], "negative_slope", 0.5),
    "dropout": lambda m, _: m[2].train(),
    "modes": lambda m, _: m.train(),
    "the model's hook": lambda m, _: m.register_forward_hook(lambda *_: None),
    "a child's hook": lambda m, _: m[1].register_forward_pre_hook(lambda *_: None),
    "a backward hook": lambda m, _: m[0].register_full_backward_hook(lambda *_: None),
    "the loss' hook": lambda _, loss: loss.register_forward_hook(lambda *_: None),
    "a tensor's hook": lambda m, _: m[0].weight.register_hook(lambda g: g),
    "a hook after": lambda m, _: m[0].bias.register_post_accumulate_grad_hook(lambda _: None),
    "compiled": lambda m, _: m[0].compile(backend="eager"),
    "frozen": lambda m, _: m[0].bias.requires_grad_(False),
    "double": lambda m, _: m.double(),
    "meta": lambda m, _: m.to("meta"),
    "a parametrization": lambda m, _: parametrize.register_parametrization(m[0], "weight", Doubled()),
    "a weight": lambda m, _: setattr(m[0], "weight", nn.Parameter(m[0].weight.detach())),
    "a bias of one": lambda m, _: setattr(m[3], "bias", nn.Parameter(m[3].bias.detach())),
    "no bias": lambda m, _: setattr(m[0], "bias", None),
    "a parameter more": lambda m, _: m.register_parameter("extra", nn.Parameter(torch.ones(1))),
    "a shape": lambda m, _: set_data(m, torch.ones(8, 5)),
    "a layout": lambda m, _: set_data(m, torch.ones(6, 8).t()),
    "reduction": lambda _, loss: setattr(loss, "reduction", "sum"),
    "ignore_index": lambda _, loss: setattr(loss, "ignore_index", 0),
    "label_smoothing": lambda _, loss: setattr(loss, "label_smoothing", 0.1),
    "class weights": lambda _, loss: setattr(loss, "weight", torch.ones(1)),
    "class weights that learn": lambda _, loss: loss.weight.requires_grad_(),
}


@pytest.mark.parametrize("name", CHANGES)
def test_changes(name: str) -> None:
    model, loss = made()
    assert isinstance(recognise(model, loss), Network)
    snapshot = Snapshot(model, loss)
    assert snapshot.of(model, loss)
    CHANGES[name](model, loss)
    assert not snapshot.of(model, loss)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (nn.Linear, "forward"),
        (nn.CrossEntropyLoss, "forward"),
        (nn.LeakyReLU, "__call__"),
        (nn.Module, "__call__"),
    ],
)
def test_a_class_is_patched(kind: type, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, loss = made()
    snapshot = Snapshot(model, loss)
    monkeypatch.setattr(kind, name, lambda *_: None)
    assert not snapshot.of(model, loss)
    assert isinstance(recognise(model, loss), str)
    monkeypatch.undo()
    assert snapshot.of(model, loss)


def test_class_weights_of_any_layout() -> None:
    model, loss = made()
    loss.weight = torch.ones(6)[::2]
    assert Snapshot(model, loss).of(model, loss)


def test_other_objects() -> None:
    model, loss = made()
    snapshot = Snapshot(model, loss)
    assert not snapshot.of(copy.deepcopy(model), loss)
    assert not snapshot.of(model, copy.deepcopy(loss))


def test_global_hooks_and_hooks_that_are_gone() -> None:
    model, loss = made()
    snapshot = Snapshot(model, loss)
    handles = [
        register_module_forward_hook(lambda *_: None),
        model.register_forward_hook(lambda *_: None),
    ]
    for handle in handles:
        assert not snapshot.of(model, loss)
        handle.remove()
    assert snapshot.of(model, loss)


def test_what_training_changes() -> None:
    """Values, gradients, versions and a mode that is set back are none of its business."""
    model, loss = made()
    snapshot = Snapshot(model, loss)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss(model.train()(torch.randn(4, 6)), torch.zeros(4, dtype=torch.long)).backward()
    optimizer.step()
    model.load_state_dict(copy.deepcopy(model.state_dict()))
    assert snapshot.of(model.eval(), loss)


def test_attributes_that_do_not_compare() -> None:
    model, loss = made()
    model.note = torch.ones(3).numpy()
    snapshot = Snapshot(model, loss)
    assert snapshot.of(model, loss)
    model.note = torch.zeros(3).numpy()
    assert not snapshot.of(model, loss)


def test_a_training_step_recognises_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, loss = made()
    step = fastmlp.TrainStep(model, loss, torch.optim.SGD(model.parameters(), lr=0.1))
    x, y = torch.randn(4, 6), torch.zeros(4, dtype=torch.long)
    calls = []
    found = fastmlp.engine.choose.network.recognise
    monkeypatch.setattr(fastmlp.engine.choose.network, "recognise", lambda *a: calls.append(1) or found(*a))
    for _ in range(3):
        step(x, y)
    assert (len(calls), step.engine) == (1, "cpu")
    with backends.use("torch"):
        step(x, y)
        assert step.engine.startswith("eager")
    step(x, y)
    assert step.engine == "cpu"
    model[0].weight = nn.Parameter(torch.ones(8, 6))
    step.optimizer.add_param_group({"params": [model[0].weight]})
    step(x, y)
    model.train()
    step(x, y)
    assert step.engine.startswith("eager")
    model.eval()
    step(x, y)
    assert step.engine == "cpu"
