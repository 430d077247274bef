"""A run of `train`, from its options to the saved net."""

from __future__ import annotations

import json
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from fastmlp import backends
from fastmlp.cli import nets, optimizers, runs, sets
from fastmlp.cli.common import by_option, count_of, errors, fail, memory_for, what_failed, widths_of
from fastmlp.cli.options import Settings
from fastmlp.cli.progress import Live
from fastmlp.cli.runs import Record
from fastmlp.data import DataError
from fastmlp.training import Epoch, History, Interrupted, Position, TrainingError, distributed
from fastmlp.training.errors import is_out_of_memory
from fastmlp.training.fit import fit


def run(record: Record, where: torch.device, changed: Collection[str] | None, console: Console) -> History:
    """The run itself, and what it leaves.

    Args:
        record: its options and files.
        where: the device.
        changed: what may differ from the run that it goes on from; None for a new one.
        console: where it is told.
    """
    settings, kept = record.settings, record.paths.get("checkpoint")
    hidden, done = widths_of(settings.hidden), _done(record, changed is not None)
    try:
        train_set, test_set = distributed.first(sets.both, settings.dataset, settings.data, settings.subset)
    except DataError as error:
        fail(str(error))
    classes = sets.classes_of(train_set)
    widths = [train_set.features, *hidden, sets.outputs_of(train_set)]
    about = nets.description(settings, widths, classes, train_set.name)
    begin = partial(record.begin, done.epoch if done else 0, -(-len(train_set) // settings.batch_size))
    torch.manual_seed(settings.seed)
    with stops_said(kept or record.paths["net"]):
        with memory_for(f"--hidden {settings.hidden}"):
            net = nets.build(widths, settings.activation).to(where)
        examples = count_of(len(train_set), "example")
        console.print(f"{nets.title(about)}, {train_set.name}, {examples}, {_how(settings, net, where)}")
        if changed is not None:
            console.print(
                f"{kept}: going on after {done}" if done else f"no checkpoint at {kept} yet: from the start"
            )
        if settings.compile:
            net.compile()
        with Live(console, len(train_set), settings.epochs, done, settings.batch_size) as live:

            def on_batch(examples: int) -> None:
                begin()
                live.on_batch(examples)

            def on_epoch(epoch: Epoch) -> None:
                record.on_epoch(epoch)
                live.on_epoch(epoch)

            history = fit(
                distributed.wrap(net, where),
                train_set,
                test_set,
                on_batch=on_batch,
                on_epoch=on_epoch,
                optimizer=optimizers.make(settings, net),
                loss=None if classes else nn.MSELoss(),
                checkpoint=kept,
                resume=done is not None,
                changed=changed if changed and done is not None else (),
                **_numbers(settings),
            )
    begin()  # of a run that had no step left
    try:
        out = distributed.first(record.close, net, about, history)
    except OSError as error:
        fail(f"{error.filename or record.paths['net']}: {error.strerror or error}")
    if history.stopped:
        console.print(f"stopped early: {history.stopped}")
    console.print(_summary(history, len(train_set)) + f"saved to {out}", style="bold")
    return history


def _done(record: Record, resume: bool) -> Position | None:
    """How far the run is that is gone on from; what is in the way of its files is said or put aside."""
    kept = record.paths.get("checkpoint")
    done = runs.place(kept) if kept is not None and resume else None
    distributed.first(record.check, done is not None)
    if kept is not None and not resume:
        runs.put_aside(kept)
    return done


def _how(settings: Settings, net: nn.Module, where: torch.device) -> str:
    """What trains it."""
    try:
        choice = backends.choose(next(net.parameters()))
    except RuntimeError as error:  # Triton is asked for and cannot run
        fail(str(error))
    processes = f", {distributed.size()} processes, no checkpoints" if distributed.size() > 1 else ""
    return (
        f"batch {settings.batch_size}, {optimizers.said(settings)}, {settings.dtype.value}, "
        f"{where} ({choice.reason}){processes}"
    )


def _numbers(settings: Settings) -> dict[str, Any]:
    """What `fit` takes as it stands in the options."""
    return {
        "epochs": settings.epochs,
        "batch_size": settings.batch_size,
        "schedule": settings.schedule.value,
        "clip_norm": settings.clip,
        "patience": settings.patience,
        "min_delta": settings.min_delta,
        "seed": settings.seed,
        "dtype": settings.dtype.torch,
        "engine": "eager" if settings.compile else settings.engine.value,
        "every": settings.every,
    }


def _summary(history: History, count: int) -> str:
    """How it went, in a line."""
    rate = count * len(history.epochs) / history.seconds if history.seconds else 0.0
    found = (
        f"{count_of(len(history.epochs), 'epoch')} in {history.seconds:.2f} s "
        f"({rate:,.0f} examples/s with the tests, engine {history.engine}), "
    )
    last = history.epochs[-1] if history.epochs else None
    if last and last.test_accuracy is not None:
        return f"{found}test accuracy {last.test_accuracy:.4f}, "
    return f"{found}test loss {last.test_loss:.4f}, " if last and last.test_loss is not None else found


def result(history: History, record: Record) -> dict[str, Any]:
    """What --json prints."""
    return {
        "config": record.settings.plain(),
        **json.loads(history.to_json()),
        "accuracy": history.epochs[-1].test_accuracy if history.epochs else None,
        "paths": {name: str(path) for name, path in record.paths.items()},
    }


@contextmanager
def stops_said(kept: Path) -> Iterator[None]:
    """Say what stopped the training, and how to go on from the checkpoint ``kept`` if there is one of it."""
    try:
        yield
    except Interrupted as error:
        fail(f"{error}; the same command with --resume goes on from there", 128 + error.signal)
    except KeyboardInterrupt:
        fail("interrupted", 130)
    except ValueError as error:  # an engine that cannot run here, a checkpoint of another run
        fail(by_option(str(error), [*Settings.__dataclass_fields__, "changed"], {"clip_norm": "clip"}), 2)
    except OSError as error:
        fail(f"--checkpoint {kept}: {error.strerror or error}")
    except (RuntimeError, MemoryError) as error:
        if distributed.is_gone(error):
            errors.print(f"error: another process is gone ({str(error).splitlines()[0]})", style="red")
            distributed.leave(1)
        if _is_compilers(error):
            fail(f"--compile: {str(error).strip().splitlines()[0]}")
        if not isinstance(error, TrainingError) and not is_out_of_memory(error):
            raise
        again = "--batch-size N --changed batch-size" if is_out_of_memory(error) else "--lr LR --changed lr"
        goes_on = f"; --resume {again} goes on from there" if str(kept) in str(error) else ""
        whose = ""
        if is_out_of_memory(error) and distributed.size() > 1:  # the others may have enough
            whose, errors.quiet = f"process {distributed.rank()}: ", False
        what = str(error).splitlines()[0] if isinstance(error, TrainingError) else what_failed(error)
        fail(f"{whose}{what}{goes_on}")


def _is_compilers(error: BaseException) -> bool:
    """Whether torch.compile says that it cannot, such as for want of a C++ compiler."""
    dynamo = sys.modules.get("torch._dynamo.exc")  # not imported where nothing is compiled
    return dynamo is not None and isinstance(error, dynamo.TorchDynamoException)
