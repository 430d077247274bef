"""Nets as the command line builds, saves and finds them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import fastmlp
from fastmlp import activations, data
from fastmlp.cli import nets
from fastmlp.training import checkpoint, load
from tests.commands import assert_fails, run


@pytest.mark.parametrize("name", activations.NAMES)
def test_build(name: str) -> None:
    """As the book starts it, with an activation between the layers and none at the end."""
    net = nets.build([6, 500, 400, 3], name)
    kinds = [type(module) for module in net]
    assert kinds.count(nn.Linear) == 3
    assert kinds[-1] is nn.Linear
    if name != "none":
        assert kinds[1] is kinds[3] is activations.TABLE[name].module
    assert net[2 if name != "none" else 1].weight.std().item() == pytest.approx(0.01, rel=0.02)
    x = torch.randn(4, 6)
    torch.testing.assert_close(net(x), nn.Sequential(*net)(x))


def test_load_net(trained: Path, device: str) -> None:
    net, about = nets.load_net(trained, device)
    state, _ = load(trained)
    assert not net.training
    for key, tensor in net.state_dict().items():
        assert torch.equal(tensor.cpu(), state[key])
        assert tensor.device.type == device
    assert nets.title(about) == "64-32-10 relu"
    assert about["classes"] == [*map(str, range(10))]
    assert (about["dataset"], about["fastmlp"]) == ("digits", fastmlp.__version__)
    assert about["config"]["optimizer"] == "nesterov"
    assert not {"out", "checkpoint", "history", "tensorboard"} & {*about["config"]}


def test_outputs(trained: Path, device: str) -> None:
    """Batch by batch as at once, of pixels and of what they stand for, wherever they are."""
    net, _ = nets.load_net(trained, device)
    x = data.named("digits")[1].images.flatten(1)
    found = nets.outputs(net, x, 100, torch.float32)
    with torch.no_grad():
        expected = net((x.float() / 255).to(device))
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(nets.outputs(net, (x.float() / 255).to(device), 7, torch.float32), expected)
    assert nets.outputs(net, x, 100, torch.bfloat16).dtype == torch.float32


WIDE = [50000, 60000]
FORGED = [
    (
        {"widths": WIDE, "classes": []},
        "the state of another net: no tensors of a net with the widths [50000, 60000]",
    ),
    ({"widths": [64, *[32] * 9, 10]}, "the state of another net: "),
    ({"widths": [2**70, 32, 10]}, "the state of another net: "),
    ({"widths": [64, 32.0, 10]}, "widths: expected positive numbers, got [64, 32.0, 10]"),
    ({"widths": [64, -1, 10]}, "widths: expected positive numbers, got [64, -1, 10]"),
    ({"widths": "64"}, "widths: expected positive numbers, got '64'"),
    ({"widths": [64]}, "widths: expected positive numbers, got [64]"),
    ({"activation": "swish"}, "activation: expected one of none, relu, "),
    ({"activation": ["relu"]}, "activation: expected one of none, relu, "),
    ({"activation": "prelu"}, "the state of another net: "),
    ({"classes": ["a"]}, "classes: expected 10, as many as outputs, got 1"),
    ({"classes": None}, "classes: expected names, got None"),
    ({"classes": [1] * 10}, "classes: expected names, got [1, 1, 1, 1, 1, 1, ...]"),
    ({"dataset": 3}, "dataset: expected a name, got 3"),
    ({"config": []}, "config: expected the options of its run, got []"),
    ({"config": {"dataset": "cifar"}}, "config: dataset: expected one of ['fashion-mnist', "),
    ({"config": {"data": 3}}, "config: data: expected a directory, got 3"),
]


@pytest.mark.parametrize(("change", "message"), FORGED)
def test_what_a_file_says_of_its_net_is_checked(
    change: dict[str, object], message: str, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a line, by every command, and before a tensor of that size is made."""
    made, linear = [], nn.Linear

    class Linear(linear):
        def __init__(self, *sizes: int) -> None:
            super().__init__(*sizes)
            made.append(self.weight.device.type)

    monkeypatch.setattr(nn, "Linear", Linear)
    state, about = load(trained)
    checkpoint.write(tmp_path / "net", state, {"metadata": {**about, **change}})
    for command in (("eval",), ("predict",), ("profile",), ("plot", "confusion")):
        assert_fails(run(*command, tmp_path / "net", "--device", "cpu"), 1, f"{tmp_path / 'net'}: {message}")
    assert {*made} <= {"meta"}
