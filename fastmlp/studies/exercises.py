"""The chapter's exercises: width, depth, learning rate, activation, initialization."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fastmlp.activations import module_of
from fastmlp.modules import Sequential
from fastmlp.studies.exercise import Exercise, Variant
from fastmlp.studies.study import Study

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_Start = Callable[[Tensor], object]
#: How weights begin; biases begin at 0.
STARTS: dict[str, _Start] = {
    "std 0.01": functools.partial(nn.init.normal_, std=0.01),
    "Xavier": nn.init.xavier_normal_,
    "He": functools.partial(nn.init.kaiming_normal_, nonlinearity="relu"),
    "zeros": nn.init.zeros_,
    "constant 0.001": functools.partial(nn.init.constant_, val=0.001),
}


def mlp(
    hidden: Sequence[int], activation: str = "relu", start: str = "He", sizes: tuple[int, int] = (784, 10)
) -> Sequential:
    """Linear layers with ``activation`` between them, their weights drawn as ``start`` says."""
    widths = [sizes[0], *hidden, sizes[1]]
    layers: list[nn.Module] = []
    for i in range(len(widths) - 1):
        layer = nn.Linear(widths[i], widths[i + 1])
        STARTS[start](layer.weight)
        nn.init.zeros_(layer.bias)
        layers.append(layer)
        if i < len(widths) - 2 and activation != "none":
            layers.append(module_of(activation))
    return Sequential(*layers)


def _widths(widths: Sequence[int]) -> list[Variant]:
    return [Variant({"width": n}, functools.partial(mlp, [n])) for n in widths]


def _depths(depths: Sequence[int]) -> list[Variant]:
    return [
        Variant({"hidden layers": n, "start": start}, functools.partial(mlp, [128] * n, start=start))
        for start in ("He", "std 0.01")
        for n in depths
    ]


def _rates(rates: Sequence[float]) -> list[Variant]:
    return [Variant({"learning rate": lr}, functools.partial(mlp, [256]), lr) for lr in rates]


def _activations(names: Sequence[str]) -> list[Variant]:
    return [
        Variant({"activation": name}, functools.partial(mlp, [256], name, start="Xavier")) for name in names
    ]


def _starts(names: Sequence[str]) -> list[Variant]:
    for name in names:
        if name not in STARTS:
            raise ValueError(f"values: expected some of {', '.join(STARTS)}, got {name!r}")
    return [Variant({"start": name}, functools.partial(mlp, [256, 256], start=name)) for name in names]


def _rank(net: nn.Module) -> dict[str, float]:
    """How many hidden units of the first layer are not copies or mixtures of others."""
    (weight, *_) = net.parameters()
    return {"rank of W1": int(torch.linalg.matrix_rank(weight.detach().double(), rtol=1e-3))}


def _draw(x: str, log: bool = False, group: str = "") -> Callable[[Study], Figure]:
    def draw(study: Study) -> Figure:
        from fastmlp.plots.compared import compared  # matplotlib is needed by pictures alone

        return compared(study.rows, x, log=log, group=group, title=study.question, note=study.caption())

    return draw


width = Exercise(
    "width",
    "How far does the width of one hidden layer carry?",
    _widths,
    values=(4, 8, 16, 32, 64, 128, 256, 512),
    few=(4, 64),
    draw=_draw("width", log=True),
)
depth = Exercise(
    "depth",
    "Do more hidden layers (of 128) help, and do they train from He's start and from the book's, std 0.01?",
    _depths,
    values=(0, 1, 2, 4, 8),
    few=(1, 2),
    draw=_draw("hidden layers", group="start"),
)
learning_rate = Exercise(
    "learning_rate",
    "Which learning rates are too small for 784-256-10, and which too large?",
    _rates,
    values=(0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0),
    few=(0.01, 0.1),
    draw=_draw("learning rate", log=True),
)
activation = Exercise(
    "activation",
    "Which activation trains 784-256-10 best?",
    _activations,
    values=("none", "relu", "prelu", "sigmoid", "tanh", "gelu", "silu"),
    few=("none", "relu", "gelu"),
    draw=_draw("activation"),
)
initialization = Exercise(
    "initialization",
    "How should the weights of 784-256-256-10 begin, and why not all alike?",
    _starts,
    values=tuple(STARTS),
    few=("He", "zeros", "constant 0.001"),
    draw=_draw("start"),
    also=_rank,
)
