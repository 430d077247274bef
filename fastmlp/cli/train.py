"""``fastmlp train``."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Any

import torch
import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn

import fastmlp
from fastmlp import activations, backends
from fastmlp.cli.common import Dtype, console, device_of, errors, fail, widths_of
from fastmlp.data import DataError, Images, load, synthetic
from fastmlp.training import (
    Epoch,
    Interrupted,
    Position,
    TrainingError,
    atomic,
    distributed,
    fit,
    position,
    save,
)
from fastmlp.training.memory import is_out_of_memory

EXAMPLE = "Example: fastmlp train --data ../shared/data --hidden 512,256 --activation gelu --lr 0.05"


class Dataset(str, Enum):
    """The data sets by name."""

    fashion_mnist = "fashion-mnist"
    synthetic = "synthetic"


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


def train(
    data: Path | None = typer.Option(None, help="Directory that holds FashionMNIST/raw; default: download."),
    dataset: Dataset = typer.Option(Dataset.fashion_mnist, help="What to train on."),
    epochs: int = typer.Option(10, min=0, help="Passes over the training set."),
    batch_size: int = typer.Option(256, min=1, help="Examples a step, in all processes together."),
    lr: float = typer.Option(0.1, min=0.0, help="Learning rate of SGD."),
    hidden: str = typer.Option("256", help="Widths of the hidden layers, such as 512,256; empty for none."),
    activation: str = typer.Option("relu", help="One of " + ", ".join(activations.NAMES) + "."),
    seed: int = typer.Option(0, help="Of the initial weights and the batch order."),
    device: str = typer.Option("", help="cpu, cuda, cuda:1; default: the GPU if there is one."),
    dtype: Dtype = typer.Option(Dtype.float32, help="Of the matrix products; parameters stay float32."),
    engine: Engine = typer.Option(Engine.auto, help="What runs the steps; auto takes the fastest that can."),
    schedule: Schedule = typer.Option(Schedule.constant, help="Of the learning rate over the run."),
    out: Path = typer.Option(Path("runs/mlp.safetensors"), help="Where the trained net is saved."),
    checkpoint: Path | None = typer.Option(
        None,
        help="Where the run's state is kept, to go on from; default: --out's name with .ckpt.safetensors.",
    ),
    every: int = typer.Option(1, min=0, help="Epochs between two checkpoints; 0: only when interrupted."),
    resume: bool = typer.Option(False, "--resume", help="Go on from --checkpoint, to the same bits."),
    changed: list[str] = typer.Option(
        [], help="With --resume: what may differ from then, such as lr or schedule; repeatable."
    ),
) -> None:
    """Train an MLP: by default the book's 784-256-10 on Fashion-MNIST.

    Ctrl-C ends the step, saves a checkpoint and leaves with status 130; the same command with --resume goes
    on. A second Ctrl-C leaves at once.

    torchrun --nproc-per-node=2 -m fastmlp train shares the work among processes: docs/distributed.md.
    """
    where = device_of(device)
    processes = distributed.size()
    console.quiet = errors.quiet = distributed.rank() > 0  # what all have to say, the first one says
    widths = widths_of(hidden)
    if activation not in activations.NAMES:
        fail(f"--activation {activation}: expected one of {', '.join(activations.NAMES)}", 2)
    if data is not None and dataset is Dataset.synthetic:
        fail(f"--data {data}: the synthetic set is read from no files", 2)
    kept = checkpoint or out.with_suffix(".ckpt.safetensors")
    if kept == out:
        fail(f"--checkpoint {kept}: expected another file than --out's", 2)
    if processes > 1 and (checkpoint is not None or resume):
        fail("--checkpoint, --resume: a run in several processes keeps no checkpoint", 2)
    distributed.start(where)
    distributed.first(_check_writable, out, "--out")
    done = None
    if processes == 1:
        _check_writable(kept, "--checkpoint")
        done = _position(kept, resume)
    try:
        train_set, test_set = distributed.first(_sets, dataset, data)
    except DataError as error:
        fail(str(error))
    sizes = [train_set.features, *widths, len(train_set.classes)]
    torch.manual_seed(seed)
    with _failing_in_a_line(kept):
        net = _net(sizes, activation).to(where)
        try:
            choice = backends.choose(next(net.parameters()))
        except RuntimeError as error:  # Triton is asked for and cannot run
            fail(str(error))
        console.print(
            f"{'-'.join(map(str, sizes))} {activation}, {train_set.name}, {len(train_set):,} examples, "
            f"batch {batch_size}, SGD {lr}, {dtype.value}, {where} ({choice.reason})"
            + (f", {processes} processes, no checkpoints" if processes > 1 else "")
        )
        if resume:
            console.print(
                f"going on after {done}" if done else f"no checkpoint at {kept} yet: from the start"
            )
        options: dict[str, Any] = {
            "epochs": epochs,
            "batch_size": batch_size,
            "lr": lr,
            "seed": seed,
            "dtype": getattr(torch, dtype.value),
            "engine": engine.value,
            "schedule": schedule.value,
            "checkpoint": kept if processes == 1 else None,
            "every": every,
            "resume": resume and done is not None,
            "changed": changed,
        }
        model = distributed.wrap(net, where)
        history = _fit(model, train_set, test_set, done if resume else None, options)
    description = {
        "widths": sizes,
        "activation": activation,
        "classes": list(train_set.classes),
        "dataset": train_set.name,
        "fastmlp": fastmlp.__version__,
    }
    try:
        distributed.first(save, net, out, description)
    except OSError as error:
        fail(f"--out {out}: {error.strerror or error}")
    distributed.stop()
    last = history.epochs[-1] if history.epochs else None
    rate = len(train_set) * len(history.epochs) / history.seconds if history.seconds else 0.0
    result = f"test accuracy {last.test_accuracy:.4f}, " if last and last.test_accuracy is not None else ""
    console.print(
        f"{len(history.epochs)} epochs in {history.seconds:.2f} s "
        f"({rate:,.0f} examples/s with the tests, engine {history.engine}), {result}saved to {out}",
        style="bold",
    )


@contextmanager
def _failing_in_a_line(kept: Path) -> Iterator[None]:
    """Say what stopped the training, and how to go on from the checkpoint ``kept`` if there is one of it."""
    try:
        yield
    except Interrupted as error:
        fail(f"{error}; the same command with --resume goes on from there", 128 + error.signal)
    except KeyboardInterrupt:
        fail("interrupted", 130)
    except ValueError as error:  # an engine that cannot run here, a checkpoint of another run
        fail(str(error), 2)
    except OSError as error:
        fail(f"--checkpoint {kept}: {error.strerror or error}")
    except (RuntimeError, MemoryError) as error:
        if distributed.is_gone(error):
            fail(f"another process is gone ({str(error).splitlines()[0]})")
        if not isinstance(error, TrainingError) and not is_out_of_memory(error):
            raise
        again = "--batch-size N --changed batch_size" if is_out_of_memory(error) else "--lr LR --changed lr"
        goes_on = f"; --resume {again} goes on from there" if str(kept) in str(error) else ""
        whose = ""
        if is_out_of_memory(error) and distributed.size() > 1:  # the others may have enough
            whose, errors.quiet = f"process {distributed.rank()}: ", False
        fail(f"{whose}{(str(error) or 'out of memory').splitlines()[0]}{goes_on}")


def _sets(dataset: Dataset, data: Path | None) -> tuple[Images, Images]:
    if dataset is Dataset.synthetic:
        return synthetic(seed=0)
    return load(data, lambda text: errors.print(text, style="yellow"))


def _check_writable(path: Path, option: str) -> None:
    """Say before the training that what comes of it cannot be saved."""
    try:
        atomic.prepare(path)
    except OSError as error:
        fail(f"{option} {path}: {'a directory' if path.is_dir() else error.strerror or error}")


def _position(path: Path, resume: bool) -> Position | None:
    """How far the run is that ``path`` is a checkpoint of; None for none.

    An unfinished run's that nobody asks to go on with is put aside, as --resume may be forgotten; and so is
    anything else.
    """
    try:
        found = position(path)
        what = f"{path} is of an unfinished run: {found} of {found.epochs}"
        if resume or found.epoch == found.epochs:
            return found
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        if resume:
            fail(f"--checkpoint {error}")
        what = str(error)
    aside = path.with_name(f"{path.name}.previous")
    os.replace(path, aside)
    errors.print(f"{what}; moved to {aside}", style="yellow")
    return None


def _net(widths: list[int], activation: str) -> fastmlp.Sequential:
    """Linear layers as the book starts them: weights of std 0.01, torch's own biases."""
    layers: list[nn.Module] = []
    for i in range(len(widths) - 1):
        layers.append(nn.Linear(widths[i], widths[i + 1]))
        if i < len(widths) - 2 and activation != "none":
            layers.append(_module(activation))
    net = fastmlp.Sequential(*layers)

    def init_weights(module: nn.Module) -> None:
        if type(module) is nn.Linear:
            nn.init.normal_(module.weight, std=0.01)

    net.apply(init_weights)
    return net


def _module(activation: str) -> nn.Module:
    return nn.GELU("tanh") if activation == "gelu_tanh" else activations.TABLE[activation].module()


def _fit(
    net: nn.Module,
    train_set: Images,
    test_set: Images,
    done: Position | None,
    options: dict[str, Any],
) -> fastmlp.training.History:
    """Train with a progress bar on a terminal, and a line for each epoch and each warning anywhere."""
    columns = (
        TextColumn("epoch {task.fields[epoch]}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("examples, {task.fields[rate]:,.0f}/s"),
        TimeRemainingColumn(),
    )
    count, epochs = len(train_set), options["epochs"]
    begun = done.epoch if done else 0
    past = begun * count + (done.step * options["batch_size"] if done else 0)
    with (
        Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress,
        warnings.catch_warnings(),
    ):
        warnings.showwarning = lambda message, *_, **__: errors.print(str(message), style="yellow")
        task = progress.add_task("", total=count * epochs, completed=past, epoch=begun + 1, rate=0.0)

        def on_epoch(epoch: Epoch) -> None:
            progress.update(task, epoch=min(epoch.number + 1, epochs), rate=epoch.examples_per_second)
            console.print(str(epoch))

        return fit(
            net,
            train_set,
            test_set,
            on_batch=lambda examples: progress.advance(task, examples),
            on_epoch=on_epoch,
            **options,
        )
