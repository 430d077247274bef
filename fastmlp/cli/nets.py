"""Nets as `train` builds and saves them, and as the other commands find them again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fastmlp
from fastmlp.activations import module_of
from fastmlp.cli.common import fail
from fastmlp.cli.options import Settings
from fastmlp.engine.autograd import precision
from fastmlp.training import checkpoint, load

#: Options that say where things are put, not what the net is.
_PLACES = ("out", "checkpoint", "history", "tensorboard")


def build(widths: list[int], activation: str) -> fastmlp.Sequential:
    """Linear layers as the book starts them: weights of std 0.01, torch's own biases.

    Args:
        widths: of the input and of every layer.
        activation: a name of the table, between the layers.
    """
    layers: list[nn.Module] = []
    for i in range(len(widths) - 1):
        layers.append(nn.Linear(widths[i], widths[i + 1]))
        if i < len(widths) - 2 and activation != "none":
            layers.append(module_of(activation))
    net = fastmlp.Sequential(*layers)

    def init_weights(module: nn.Module) -> None:
        if type(module) is nn.Linear:
            nn.init.normal_(module.weight, std=0.01)

    net.apply(init_weights)
    return net


def description(settings: Settings, widths: list[int], classes: list[str], dataset: str) -> dict[str, Any]:
    """What a saved net's file says besides its numbers."""
    return {
        "widths": widths,
        "activation": settings.activation,
        "classes": classes,
        "dataset": dataset,
        "fastmlp": fastmlp.__version__,
        "config": {name: value for name, value in settings.plain().items() if name not in _PLACES},
    }


def title(about: dict[str, Any]) -> str:
    """The net in two words: ``784-256-10 relu``."""
    return f"{'-'.join(map(str, about['widths']))} {about['activation']}"


def load_net(
    path: Path | str, device: torch.device | str = "cpu"
) -> tuple[fastmlp.Sequential, dict[str, Any]]:
    """A net that `train` saved, in eval mode, and what its file says of it.

    That is: widths, activation, classes ([] for a regression), dataset (its full name), fastmlp (the version)
    and config, the options of the run but for where its files went.

    Raises:
        OSError: the file is not there, or cannot be read.
        ValueError: it is no such net, or damaged, with the reason.
    """
    state, about = load(path)
    if "epochs" in about and "steps" in about:
        raise ValueError(f"{path}: the checkpoint of a run; expected a net, as train saves it to --out")
    missing = [name for name in ("widths", "activation", "classes") if name not in about]
    if missing:
        raise ValueError(f"{path}: expected a net that fastmlp train saved, found one without {missing[0]}")
    net = build(about["widths"], about["activation"])
    checkpoint.check(net, state, str(path))
    checkpoint.put(net, state)
    return net.to(device).eval(), about


@torch.no_grad()
def outputs(net: nn.Module, x: Tensor, batch_size: int, dtype: torch.dtype) -> Tensor:
    """What ``net`` gives for every row of ``x`` (N, features), uint8 pixels or floats: (N, out) float32."""
    device = next(net.parameters()).device
    parts = []
    for inputs, _ in fastmlp.data.batches(x, x, batch_size):
        with precision(device, dtype):
            parts.append(net(inputs.to(device)).float())
    return torch.cat(parts)


def opened(path: Path, device: torch.device) -> tuple[fastmlp.Sequential, dict[str, Any]]:
    """`load_net`, its errors in a line."""
    try:
        return load_net(path, device)
    except OSError as error:
        fail(f"{path}: {error.strerror or error}")
    except ValueError as error:
        fail(str(error))
