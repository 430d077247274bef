"""Options: those that several commands have, and `Settings`, all that a run of ``fastmlp train`` is.

The names that an option takes stand here again, since the tables that have them import torch.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from enum import Enum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

from typer import Argument, BadParameter, Option

if TYPE_CHECKING:
    import torch

#: `fastmlp.activations.NAMES`
ACTIVATIONS = (
    *("none", "relu", "leaky_relu", "sigmoid", "tanh"),
    *("gelu", "gelu_tanh", "silu", "prelu"),
)
#: `fastmlp.costs.devices.DEVICES`
DEVICES = ("a100", "h100", "h200", "b200", "rtx4090", "rtx5090", "mi300x", "cpu")
#: `fastmlp.studies.STUDIES`
STUDIES = (
    *("width", "depth", "learning-rate", "activation", "initialization", "alignment", "versions"),
    *("collapse", "approximation"),
)


class Dtype(str, Enum):
    """What the matrix products run in."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"

    @property
    def torch(self) -> torch.dtype:
        """torch's own."""
        import torch

        return getattr(torch, self.value)


class Dataset(str, Enum):
    """The data sets by name: `fastmlp.data.NAMES`."""

    fashion_mnist = "fashion-mnist"
    mnist = "mnist"
    kmnist = "kmnist"
    digits = "digits"
    diabetes = "diabetes"
    synthetic = "synthetic"


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


class Sort(str, Enum):
    """What a profile can be sorted by; see `fastmlp.profiling.rows`."""

    time = "time"
    mean = "mean"
    launches = "launches"
    bytes = "bytes"
    flop = "flop"
    loss = "loss"
    name = "name"
    layer = "layer"


def names_of(kind: type[Enum]) -> str:
    """The names that an option may have, for its help."""
    return ", ".join(member.value for member in kind)


def starting_with(names: tuple[str, ...]) -> Callable[[str], list[str]]:
    """What a shell completes an option to that takes one of the ``names``."""
    return lambda incomplete: [name for name in names if name.startswith(incomplete)]


NET_HELP = "The file that train saved with --out."
DATASET_HELP = "A data set other than the one it was trained on."
DATA_HELP = "Folder with its files, such as FashionMNIST/raw; default: as in training."
_DEVICE_HELP = "cpu, cuda, cuda:1; default: the GPU if there is one."
# What several commands have.
Net = Annotated[Path, Argument(metavar="NET", help=NET_HELP, show_default=False)]
OtherDataset = Annotated[Dataset | None, Option(metavar="NAME", help=DATASET_HELP)]
Data = Annotated[Path | None, Option(metavar="DIR", help=DATA_HELP)]
Device = Annotated[str, Option(metavar="NAME", help=_DEVICE_HELP)]
BatchSize = Annotated[int, Option(metavar="N", min=1, help="Examples at a time.")]
Products = Annotated[Dtype, Option(metavar="NAME", help="Dtype of the matrix products.")]
Remeasure = Annotated[
    bool, Option("--remeasure", help="Measure again what the device reaches, and keep the best.")
]
AsJson = Annotated[
    bool, Option("--json", help="One JSON object on stdout, and nothing else; messages go to stderr.")
]


def _number(text: str | float) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number < math.inf:
        raise BadParameter(f"expected a finite number of at least 0, got {text}")
    return number


# An option of each of the help's panels.
_data = partial(Option, rich_help_panel="Data")
_net = partial(Option, rich_help_panel="Net")
_training = partial(Option, rich_help_panel="Training")
_number_of = partial(_training, metavar="X [x>=0]", parser=_number)
_runs = partial(Option, rich_help_panel="What runs it")
_leaves = partial(Option, rich_help_panel="What it leaves")
_file = partial(_leaves, metavar="FILE")


@dataclass(frozen=True)
class Settings:
    """The options of a run: the command's by `spread`, a file's by `config`. Names as in Python."""

    dataset: Annotated[Dataset, _data(metavar="NAME", help=f"What to train on: {names_of(Dataset)}.")] = (
        Dataset.fashion_mnist
    )
    data: Annotated[
        Path | None,
        _data(metavar="DIR", help="Folder with its files, such as FashionMNIST/raw; default: download."),
    ] = None
    subset: Annotated[
        int | None,
        _data(metavar="N", min=1, help="Use the first N examples, and as large a part of the test set."),
    ] = None

    hidden: Annotated[
        str, _net(metavar="WIDTHS", help="Widths of the hidden layers, such as 512,256; empty for none.")
    ] = "256"
    activation: Annotated[
        str,
        _net(
            metavar="NAME",
            autocompletion=starting_with(ACTIVATIONS),
            help=f"One of {', '.join(ACTIVATIONS)}.",
        ),
    ] = "relu"

    epochs: Annotated[int, _training(metavar="N", min=0, help="Passes over the training set.")] = 10
    batch_size: Annotated[
        int, _training(metavar="N", min=1, help="Examples in a step, over all processes.")
    ] = 256
    optimizer: Annotated[Optimizer, _training(metavar="NAME", help=f"One of {names_of(Optimizer)}.")] = (
        Optimizer.sgd
    )
    lr: Annotated[
        float | None,
        _number_of(help="Learning rate; default: 0.1, with momentum 0.05, for Adam and AdamW 0.001."),
    ] = None
    momentum: Annotated[
        float | None, _number_of(help="Momentum of --optimizer momentum or nesterov; default: 0.9.")
    ] = None
    weight_decay: Annotated[float | None, _number_of(help="Weight decay; default: 0, for AdamW 0.01.")] = None
    schedule: Annotated[
        Schedule, _training(metavar="NAME", help=f"The learning rate over the run: {names_of(Schedule)}.")
    ] = Schedule.constant
    clip: Annotated[
        float | None, _number_of(help="Clip each step's gradient to this norm; default: no limit.")
    ] = None
    patience: Annotated[
        int | None,
        _training(metavar="N", min=1, help="Stop early, after N epochs without a better test loss."),
    ] = None
    min_delta: Annotated[
        float, _number_of(help="With --patience: how much lower a test loss must be to count as better.")
    ] = 0.0
    seed: Annotated[int, _training(metavar="N", help="Seed of the initial weights and the batch order.")] = 0

    device: Annotated[str, _runs(metavar="NAME", help=_DEVICE_HELP)] = ""
    dtype: Annotated[
        Dtype,
        _runs(
            metavar="NAME", help=f"Dtype of the matrix products: {names_of(Dtype)}; parameters are float32."
        ),
    ] = Dtype.float32
    engine: Annotated[
        Engine, _runs(metavar="NAME", help=f"{names_of(Engine)}; auto takes the fastest one that can run it.")
    ] = Engine.auto
    compile: Annotated[
        bool, _runs("--compile", help="Compile the net with torch.compile; autograd runs its steps.")
    ] = False

    out: Annotated[
        Path | None,
        _file(help="Where the trained net goes; default: runs/DATASET-N.safetensors, the next N."),
    ] = None
    history: Annotated[
        Path | None, _file(help="Where every epoch goes, as JSON; default: --out's name with .history.json.")
    ] = None
    tensorboard: Annotated[
        Path | None, _leaves(metavar="DIR", help="Folder for TensorBoard's logs; default: none.")
    ] = None
    checkpoint: Annotated[
        Path | None,
        _file(
            help="Where the run's state goes, to resume from; default: --out's name with .ckpt.safetensors."
        ),
    ] = None
    every: Annotated[
        int, _leaves(metavar="N", min=0, help="Epochs between two checkpoints; 0: only when interrupted.")
    ] = 1

    def plain(self) -> dict[str, Any]:
        """What was set, as TOML and JSON hold it: by the names of the command line, paths as strings."""
        values = {field.name.replace("_", "-"): getattr(self, field.name) for field in fields(self)}
        return {name: _plain(value) for name, value in values.items() if value is not None}


@dataclass(frozen=True)
class Steps:
    """What is run: steps of a net on random data."""

    net: Annotated[
        Path | None, Argument(metavar="NET", help=NET_HELP + " Default: a new net with --hidden.")
    ] = None
    hidden: Annotated[str, Option(metavar="WIDTHS", help="Widths of the hidden layers of 784-...-10.")] = (
        "256"
    )
    activation: Annotated[str, Option(metavar="NAME", help=f"One of {', '.join(ACTIVATIONS)}.")] = "relu"
    batch_size: Annotated[int, Option(metavar="N", min=1, help="Examples in a step.")] = 256
    dtype: Annotated[
        Dtype, Option(metavar="NAME", help=f"Dtype of the matrix products: {names_of(Dtype)}.")
    ] = Dtype.float32
    engine: Annotated[Engine, Option(metavar="NAME", help=f"What runs it: {names_of(Engine)}.")] = Engine.auto
    optimizer: Annotated[
        Optimizer, Option(metavar="NAME", help=f"One of {names_of(Optimizer)}, with train's numbers.")
    ] = Optimizer.sgd
    inference: Annotated[bool, Option("--inference", help="Only the forward.")] = False
    steps: Annotated[
        int, Option(metavar="N", min=1, help="How many steps to profile: an epoch of that many batches.")
    ] = 20


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, Enum) else str(value) if isinstance(value, Path) else value


def spread(function: Callable[..., None]) -> Callable[..., None]:
    """``function`` with its first parameter, a dataclass, as one option for each field."""
    first, *others = inspect.signature(function, eval_str=True).parameters.values()
    kind, hints = first.annotation, get_type_hints(first.annotation, include_extras=True)
    keyword = inspect.Parameter.KEYWORD_ONLY
    own = {
        field.name: inspect.Parameter(
            field.name, keyword, default=field.default, annotation=hints[field.name]
        )
        for field in fields(kind)
    }
    parameters = [*own.values(), *(parameter.replace(kind=keyword) for parameter in others)]

    @functools.wraps(function)
    def command(**options: Any) -> None:
        function(kind(**{name: options.pop(name) for name in own}), **options)

    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command
