"""A net without activations is one linear layer, however many it has."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fastmlp.studies.exercise import Say, batch_size, epochs_of, run, sets
from fastmlp.studies.exercises import mlp
from fastmlp.studies.study import Study, cell, machine, place
from fastmlp.training import accuracy

if TYPE_CHECKING:
    from matplotlib.figure import Figure

QUESTION = "What are many linear layers without activations between them worth?"
#: A net's name: its hidden layers and their activation, on the spirals and on the images.
_NETS: dict[str, tuple[list[int], list[int], str]] = {
    "one linear layer": ([], [], "none"),
    "layers, no activation": ([64, 64], [256], "none"),
    "the same with ReLU": ([64, 64], [256], "relu"),
}
_ARMS, _POINTS, _SIDE = 3, 200, 161


def collapse(
    *,
    epochs: int | None = None,
    seed: int = 0,
    small: bool = False,
    data: Path | str | None = None,
    device: torch.device | str | None = None,
    say: Say = print,
) -> Study:
    """Train a linear model, a net without activations, and the same net with ReLU: on spirals and on images.

    The net without activations is then multiplied out, W := W2 W1 and b := W2 b1 + b2, and compared with
    that one layer.

    Args:
        epochs: on the images; by default 5, or 3 in a small run.
        seed: of the weights and the batch order.
        small: in seconds, on 2000 images.
        data: the folder that holds FashionMNIST/raw; None to download it, or, in a small run, for the
            embedded synthetic set.
        device: where; None for the GPU if there is one.
        say: told what is done.

    Returns:
        A row for each net on each set: its accuracy, and how far its outputs are from one layer's.

    Raises:
        DataError: ``data`` is given, and what is there is missing or broken.
    """
    where, batch = place(device), batch_size(small)
    epochs = epochs_of(epochs, 5, small)
    train, test = (part.to(where) for part in sets(data, small, say))
    points, arms = (tensor.to(where) for tensor in spirals())
    plane = _plane().to(where)
    rows, regions = [], {}
    for name, (hidden, _, act) in _NETS.items():
        torch.manual_seed(seed)
        net = mlp(hidden, act, sizes=(2, _ARMS)).to(where)
        adam = torch.optim.Adam(net.parameters(), lr=0.01)
        run(net, (points, arms), None, epochs=30 if small else 150, batch_size=100, optimizer=adam, seed=seed)
        with torch.no_grad():
            regions[name] = net(plane).argmax(1).view(_SIDE, _SIDE).cpu()
        rows.append(_row("spirals", name, net, points, accuracy(net, (points, arms))))
    for name, (_, hidden, act) in _NETS.items():
        torch.manual_seed(seed)
        net = mlp(hidden, act).to(where)
        found = run(net, train, test, epochs=epochs, batch_size=batch, seed=seed)
        x = test.images.flatten(1).float() / 255
        rows.append(
            _row(train.name, name, net, x, found["test accuracy"])
            | {"test accuracies": [found["test accuracies"]]}
        )
        say(f"{train.name}, {name}: test accuracy {cell(found['test accuracy'])}")
    setup = {
        "spirals": f"{_ARMS} x {_POINTS} points, accuracy on themselves, Adam",
        "images": f"{train.name}, {len(train):,} examples",
        "training on them": f"{epochs} epochs, batch {batch}, SGD 0.1 falling to 0",
        "seed": seed,
        "machine": machine(where),
    }

    def draw(study: Study) -> Figure:
        from fastmlp.plots.regions import regions as picture  # matplotlib is needed by pictures alone

        return picture(
            points.cpu(), arms.cpu(), regions, study.rows, title=study.question, note=study.caption()
        )

    return Study("collapse", QUESTION, rows, setup, draw)


def spirals() -> tuple[Tensor, Tensor]:
    """Three arms that wind about each other: points (600, 2) float32 in [-1, 1], and which arm, int64."""
    generator = torch.Generator().manual_seed(0)
    arm = torch.arange(_ARMS, device="cpu").repeat_interleave(_POINTS)
    radius = torch.linspace(0.08, 1, _POINTS, device="cpu").repeat(_ARMS)
    noise = 0.15 * torch.randn(len(arm), generator=generator, device="cpu")
    angle = 2 * math.pi * (arm / _ARMS + 0.75 * radius) + noise
    return torch.stack([radius * angle.cos(), radius * angle.sin()], 1), arm


def merged(net: nn.Sequential) -> nn.Linear:
    """The one linear layer that a chain of them is, multiplied out in float64.

    Raises:
        ValueError: something else is in the chain.
    """
    layers = [layer for layer in net if isinstance(layer, nn.Linear)]
    if not layers or len(layers) < len(net):
        raise ValueError(f"net: expected linear layers and nothing else, got {net}")
    weight, bias = layers[0].weight.detach().double(), layers[0].bias.detach().double()
    for layer in layers[1:]:
        w, b = layer.weight.detach().double(), layer.bias.detach().double()
        weight, bias = w @ weight, w @ bias + b
    one = nn.Linear(weight.shape[1], weight.shape[0]).to(weight.device)
    with torch.no_grad():
        one.weight.copy_(weight)
        one.bias.copy_(bias)
    return one


@torch.no_grad()
def _row(data: str, name: str, net: nn.Sequential, x: Tensor, right: float) -> dict[str, Any]:
    row: dict[str, Any] = {
        "data": data,
        "net": name,
        "layers": sum(isinstance(layer, nn.Linear) for layer in net),
        "parameters": sum(parameter.numel() for parameter in net.parameters()),
        "accuracy": right,
        "difference from one layer": None,
        "same decisions": None,
    }
    if all(isinstance(layer, nn.Linear) for layer in net):
        outputs, of_one = net(x), merged(net)(x)
        row["difference from one layer"] = ((outputs - of_one).abs().max() / outputs.abs().max()).item()
        row["same decisions"] = (outputs.argmax(1) == of_one.argmax(1)).double().mean().item()
    return row


def _plane() -> Tensor:
    """A grid over the square that holds the spirals, (side², 2)."""
    side = torch.linspace(-1.15, 1.15, _SIDE, device="cpu")
    y, x = torch.meshgrid(side, side, indexing="ij")
    return torch.stack([x, y], -1).flatten(0, 1)
