"""``fastmlp train``."""

from __future__ import annotations

import json
import math
from collections.abc import Collection
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import typer
from rich.console import Console
from torch import nn

from fastmlp import activations, backends
from fastmlp.cli import nets, optimizers, resuming, runs, sets, stops
from fastmlp.cli.common import (
    JSON_HELP,
    count_of,
    device_of,
    emit,
    fail,
    memory_for,
    one_of,
    start,
    widths_of,
)
from fastmlp.cli.config import read
from fastmlp.cli.options import Engine, Settings, spread
from fastmlp.cli.progress import Live
from fastmlp.cli.record import Record
from fastmlp.data import DataError
from fastmlp.training import Epoch, History, distributed
from fastmlp.training.fit import fit

EXAMPLE = "Example: fastmlp train --hidden 512,256 --activation gelu --optimizer adam --schedule cosine"


@spread
def train(
    settings: Settings,
    config: Path | None = typer.Option(
        None,
        metavar="FILE",
        callback=read,
        is_eager=True,
        help="TOML with any of the options below; the command line comes before it.",
    ),
    resume: bool = typer.Option(False, "--resume", help="Go on from --checkpoint, to the same bits."),
    changed: list[str] = typer.Option(
        [], metavar="NAME", help="With --resume: what may differ from then, as lr or schedule; repeatable."
    ),
    overwrite: bool = typer.Option(
        False, "--overwrite", help="A net that is at --out already may be replaced."
    ),
    as_json: bool = typer.Option(False, "--json", help=JSON_HELP),
) -> None:
    """Train an MLP: by default the book's 784-256-10 on Fashion-MNIST.

    Ctrl-C ends the step, saves a checkpoint and leaves with status 130; the same command with --resume goes
    on. A second Ctrl-C leaves at once. A net that is there is not replaced without --overwrite.

    torchrun --nproc-per-node=2 -m fastmlp train shares the work among processes: docs/distributed.md.
    """
    console = start(as_json)
    if distributed.size() > 1 and (settings.checkpoint is not None or resume):
        fail("--checkpoint, --resume: a run in several processes keeps no checkpoint", 2)
    if changed and not resume:
        fail(f"--changed {changed[0]}: expected --resume with it", 2)
    if overwrite and settings.out is None:
        fail("--overwrite: expected --out with it; a run without takes a name that is free", 2)
    where = device_of(settings.device)
    settings = _checked(settings, where)
    changed = resuming.fields_of(changed, settings.optimizer)
    distributed.start(where)
    with runs.named(settings, resume, changed) as out:
        record = Record(settings, out, overwrite)
        history = _train(settings, record, where, resume, changed, console)
    if as_json and distributed.rank() == 0:
        emit(_result(history, record))
    distributed.stop()


def _train(
    settings: Settings,
    record: Record,
    where: torch.device,
    resume: bool,
    changed: Collection[str],
    console: Console,
) -> History:
    """The run itself, and what it leaves."""
    hidden, kept = widths_of(settings.hidden), record.paths.get("checkpoint")
    done = resuming.place(kept) if kept is not None and resume else None
    distributed.first(record.check, done is not None)
    if kept is not None and not resume:
        resuming.put_aside(kept)
    try:
        train_set, test_set = distributed.first(sets.both, settings.dataset, settings.data, settings.subset)
    except DataError as error:
        fail(str(error))
    classes = sets.classes_of(train_set)
    widths = [train_set.features, *hidden, sets.outputs_of(train_set)]
    about = nets.description(settings, widths, classes, train_set.name)
    torch.manual_seed(settings.seed)
    with stops.said(kept or record.paths["net"]):
        with memory_for(f"--hidden {settings.hidden}"):
            net = nets.build(widths, settings.activation).to(where)
        try:
            choice = backends.choose(next(net.parameters()))
        except RuntimeError as error:  # Triton is asked for and cannot run
            fail(str(error))
        console.print(
            f"{nets.title(about)}, {train_set.name}, {count_of(len(train_set), 'example')}, "
            f"batch {settings.batch_size}, {optimizers.said(settings)}, {settings.dtype.value}, "
            f"{where} ({choice.reason})"
            + (f", {distributed.size()} processes, no checkpoints" if kept is None else "")
        )
        if resume:
            console.print(
                f"{kept}: going on after {done}" if done else f"no checkpoint at {kept} yet: from the start"
            )
        live = Live(console, len(train_set), settings.epochs, done, settings.batch_size)
        begin = partial(record.begin, done.epoch if done else 0, -(-len(train_set) // settings.batch_size))

        def on_batch(examples: int) -> None:
            begin()
            live.on_batch(examples)

        def on_epoch(epoch: Epoch) -> None:
            record.on_epoch(epoch)
            live.on_epoch(epoch)

        if settings.compile:
            net.compile()
        with live:
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
                changed=changed if done is not None else (),
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
        "dtype": getattr(torch, settings.dtype.value),
        "engine": "eager" if settings.compile else settings.engine.value,
        "every": settings.every,
    }


def _checked(settings: Settings, where: torch.device) -> Settings:
    """The options as they will be in effect, or the first that makes no sense."""
    one_of(activations.NAMES, settings.activation, "--activation")
    sets.check(settings.dataset, settings.data)
    if settings.compile and settings.engine not in (Engine.auto, Engine.eager):
        fail(
            f"--compile: --engine {settings.engine.value} runs no code of torch's; expected auto or eager", 2
        )
    if settings.clip is not None and not 0 < settings.clip < math.inf:
        fail(f"--clip {settings.clip}: expected a positive number", 2)
    if settings.min_delta and settings.patience is None:
        fail(f"--min-delta {settings.min_delta}: expected --patience with it", 2)
    return replace(optimizers.resolved(settings), device=settings.device or where.type)


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


def _result(history: History, record: Record) -> dict[str, Any]:
    """What --json prints."""
    return {
        "config": record.settings.plain(),
        **json.loads(history.to_json()),
        "accuracy": history.epochs[-1].test_accuracy if history.epochs else None,
        "paths": {name: str(path) for name, path in record.paths.items()},
    }
