"""Nets as `train` builds and saves them, and as the other commands find them again."""

from __future__ import annotations

import reprlib
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fastmlp
from fastmlp import activations
from fastmlp.activations import module_of
from fastmlp.cli.common import errors_of, fail
from fastmlp.cli.options import Dataset, Settings
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
        ValueError: it is not such a net, or is damaged, with the reason.
    """
    state, about = load(path)
    if isinstance(about, dict) and "epochs" in about and "steps" in about:
        raise ValueError(f"{path}: the checkpoint of a run; expected a net, as train saves it to --out")
    _check_about(about, path)
    _check_sizes(about, state, path)
    net = build(about["widths"], about["activation"])
    checkpoint.put(net, state)
    return net.to(device).eval(), about


def _check_about(about: dict[str, Any], path: Path | str) -> None:
    """See that a file says of its net what `description` says."""
    if not isinstance(about, dict):
        raise ValueError(f"{path}: expected a net that fastmlp train saved, found one without a description")
    missing = [name for name in ("widths", "activation", "classes") if name not in about]
    if missing:
        raise ValueError(f"{path}: expected a net that fastmlp train saved, found one without {missing[0]}")
    about.setdefault("dataset", "")
    about.setdefault("config", {})
    widths, classes, config = about["widths"], about["classes"], about["config"]
    data_sets = [member.value for member in Dataset]
    is_right = {
        "widths": (_are(widths, int) and len(widths) > 1 and min(widths) > 0, "positive numbers"),
        "activation": (about["activation"] in activations.NAMES, f"one of {', '.join(activations.NAMES)}"),
        "classes": (_are(classes, str), "names"),
        "dataset": (isinstance(about["dataset"], str), "a name"),
        "config": (isinstance(config, dict), "the options of its run"),
    }
    if is_right["config"][0]:
        is_right["config: dataset"] = (config.get("dataset") in (None, *data_sets), f"one of {data_sets}")
        is_right["config: data"] = (isinstance(config.get("data", ""), str), "a directory")
    for name, (right, expected) in is_right.items():
        if not right:
            found = reprlib.repr((config if ":" in name else about)[name.rpartition(": ")[2]])
            raise ValueError(f"{path}: {name}: expected {expected}, got {found}")
    if classes and len(classes) != widths[-1]:
        raise ValueError(f"{path}: classes: expected {widths[-1]}, as many as outputs, got {len(classes)}")


def _are(values: object, kind: type) -> bool:
    return isinstance(values, list) and all(type(value) is kind for value in values)


def _check_sizes(about: dict[str, Any], state: dict[str, Tensor], path: Path | str) -> None:
    """See that the file's tensors are those of such a net, before one of its size is made."""
    widths = about["widths"]
    shapes = {tuple(tensor.shape) for tensor in state.values() if isinstance(tensor, Tensor)}
    layers = {(outputs, inputs) for inputs, outputs in pairwise(widths)}
    if not layers <= shapes or len(widths) > len(state) + 1:
        raise ValueError(
            f"{path}: the state of another net: no tensors of a net with the widths {reprlib.repr(widths)}"
        )
    with torch.device("meta"):
        checkpoint.check(build(widths, about["activation"]), state, str(path))


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
        with errors_of(path):
            return load_net(path, device)
    except ValueError as error:
        fail(str(error))
