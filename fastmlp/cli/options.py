"""What a run of ``fastmlp train`` is: every option that is recorded with it, in one place."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Annotated, Any, get_type_hints

from typer import BadParameter, Option

from fastmlp import activations
from fastmlp.cli.common import DEVICE_HELP, Dataset, Dtype, names_of


class Optimizer(str, Enum):
    """torch's optimizers; see `fastmlp.cli.optimizers`."""

    sgd = "sgd"
    momentum = "momentum"
    nesterov = "nesterov"
    adam = "adam"
    adamw = "adamw"


class Engine(str, Enum):
    """What runs the steps; see `fastmlp.fit`."""

    auto = "auto"
    eager = "eager"
    fused = "fused"
    graph = "graph"
    persistent = "persistent"


class Schedule(str, Enum):
    """The learning rate over the run; see `fastmlp.training.schedules`."""

    constant = "constant"
    linear = "linear"
    cosine = "cosine"
    one_cycle = "one-cycle"


def _number(text: str | float) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number < math.inf:
        raise BadParameter(f"expected a finite number of at least 0, got {text}")
    return number


def _activations(incomplete: str) -> list[str]:
    return [name for name in activations.NAMES if name.startswith(incomplete)]


_ACTIVATIONS = ", ".join(activations.NAMES)
# An option of each of the help's panels.
_data = partial(Option, rich_help_panel="Data")
_net = partial(Option, rich_help_panel="Net")
_training = partial(Option, rich_help_panel="Training")
_runs = partial(Option, rich_help_panel="What runs it")
_leaves = partial(Option, rich_help_panel="What it leaves")


@dataclass(frozen=True)
class Settings:
    """The options of a run: the command's by `spread`, a file's by `config`. Names as in Python."""

    dataset: Annotated[Dataset, _data(metavar="NAME", help=f"What to train on: {names_of(Dataset)}.")] = (
        Dataset.fashion_mnist
    )
    data: Annotated[
        Path | None, _data(metavar="DIR", help="Holds its files, as FashionMNIST/raw; default: download.")
    ] = None
    subset: Annotated[
        int | None, _data(metavar="N", min=1, help="The first N examples, and of the test set in proportion.")
    ] = None

    hidden: Annotated[
        str, _net(metavar="WIDTHS", help="Of the hidden layers, such as 512,256; empty for none.")
    ] = "256"
    activation: Annotated[
        str, _net(metavar="NAME", autocompletion=_activations, help=f"One of {_ACTIVATIONS}.")
    ] = "relu"

    epochs: Annotated[int, _training(metavar="N", min=0, help="Passes over the training set.")] = 10
    batch_size: Annotated[
        int, _training(metavar="N", min=1, help="Examples a step, in all processes together.")
    ] = 256
    optimizer: Annotated[Optimizer, _training(metavar="NAME", help=f"One of {names_of(Optimizer)}.")] = (
        Optimizer.sgd
    )
    lr: Annotated[
        float | None,
        _training(
            metavar="X [x>=0]",
            parser=_number,
            help="Learning rate; default: 0.1, with momentum 0.05, of Adam and AdamW 0.001.",
        ),
    ] = None
    momentum: Annotated[
        float | None,
        _training(
            metavar="X [x>=0]", parser=_number, help="Of --optimizer momentum or nesterov; default: 0.9."
        ),
    ] = None
    weight_decay: Annotated[
        float | None, _training(metavar="X [x>=0]", parser=_number, help="Default: 0, of AdamW 0.01.")
    ] = None
    schedule: Annotated[
        Schedule, _training(metavar="NAME", help=f"Of the learning rate over the run: {names_of(Schedule)}.")
    ] = Schedule.constant
    clip: Annotated[
        float | None,
        _training(
            metavar="X [x>=0]", parser=_number, help="Largest norm of a step's gradient; default: no limit."
        ),
    ] = None
    patience: Annotated[
        int | None, _training(metavar="N", min=1, help="Stop early: after N epochs that were no better.")
    ] = None
    min_delta: Annotated[
        float,
        _training(
            metavar="X [x>=0]",
            parser=_number,
            help="With --patience: how much lower a test loss must be to count as better.",
        ),
    ] = 0.0
    seed: Annotated[int, _training(metavar="N", help="Of the initial weights and the batch order.")] = 0

    device: Annotated[str, _runs(metavar="NAME", help=DEVICE_HELP)] = ""
    dtype: Annotated[
        Dtype,
        _runs(metavar="NAME", help=f"Of the matrix products: {names_of(Dtype)}; parameters are float32."),
    ] = Dtype.float32
    engine: Annotated[
        Engine, _runs(metavar="NAME", help=f"{names_of(Engine)}; auto takes the fastest that can.")
    ] = Engine.auto
    compile: Annotated[
        bool, _runs("--compile", help="The net by torch.compile, and its steps by autograd.")
    ] = False

    out: Annotated[
        Path | None,
        _leaves(metavar="FILE", help="The trained net; default: runs/DATASET-N.safetensors, the next N."),
    ] = None
    history: Annotated[
        Path | None,
        _leaves(metavar="FILE", help="Every epoch, as JSON; default: --out's name with .history.json."),
    ] = None
    tensorboard: Annotated[Path | None, _leaves(metavar="DIR", help="TensorBoard's logs; default: none.")] = (
        None
    )
    checkpoint: Annotated[
        Path | None,
        _leaves(
            metavar="FILE",
            help="The run's state, to go on from; default: --out's name with .ckpt.safetensors.",
        ),
    ] = None
    every: Annotated[
        int, _leaves(metavar="N", min=0, help="Epochs between two checkpoints; 0: only when interrupted.")
    ] = 1

    def plain(self) -> dict[str, Any]:
        """What was set, as TOML and JSON hold it: by the names of the command line, paths as strings."""
        values = {field.name.replace("_", "-"): getattr(self, field.name) for field in fields(self)}
        return {name: _plain(value) for name, value in values.items() if value is not None}


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, Enum) else str(value) if isinstance(value, Path) else value


def spread(function: Callable[..., None]) -> Callable[..., None]:
    """``function`` with its first parameter, a `Settings`, as one option for each field."""
    hints = get_type_hints(Settings, include_extras=True)
    keyword = inspect.Parameter.KEYWORD_ONLY
    own = {
        field.name: inspect.Parameter(
            field.name, keyword, default=field.default, annotation=hints[field.name]
        )
        for field in fields(Settings)
    }
    _, *others = inspect.signature(function, eval_str=True).parameters.values()
    parameters = [*own.values(), *(parameter.replace(kind=keyword) for parameter in others)]

    @functools.wraps(function)
    def command(**options: Any) -> None:
        settings = Settings(**{name: options.pop(name) for name in own})
        function(settings, **options)

    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command
