"""``fastmlp train``."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from typer import Option

from fastmlp.cli.common import device_of, emit, fail, one_of, start
from fastmlp.cli.config import read
from fastmlp.cli.options import ACTIVATIONS, AsJson, Engine, Settings, spread

EXAMPLE = "Example: fastmlp train --hidden 512,256 --activation gelu --optimizer adam --schedule cosine"


@spread
def train(
    settings: Settings,
    config: Annotated[
        Path | None,
        Option(
            metavar="FILE",
            callback=read,
            is_eager=True,
            help="TOML with any of the options below; the command line overrides it.",
        ),
    ] = None,
    resume: Annotated[
        bool,
        Option("--resume", help="Go on from --checkpoint, to the same bits as without the interruption."),
    ] = False,
    changed: Annotated[
        list[str] | None,
        Option(
            metavar="NAME",
            help="With --resume: what may differ from before, such as lr or schedule; repeatable.",
        ),
    ] = None,
    overwrite: Annotated[bool, Option("--overwrite", help="Replace a net that is at --out already.")] = False,
    as_json: AsJson = False,
) -> None:
    """Train an MLP: by default the book's 784-256-10 on Fashion-MNIST.

    Ctrl-C ends the step, saves a checkpoint and leaves with status 130; the same command with --resume goes
    on. A second Ctrl-C leaves at once. A net that is there is not replaced without --overwrite.

    torchrun --nproc-per-node=2 -m fastmlp train shares the work among processes: docs/distributed.md.
    """
    console = start(as_json)
    from fastmlp.cli import runs, trainer
    from fastmlp.training import distributed

    if distributed.size() > 1 and (settings.checkpoint is not None or resume):
        fail("--checkpoint, --resume: a run in several processes keeps no checkpoint", 2)
    if changed and not resume:
        fail(f"--changed {changed[0]}: expected --resume with it", 2)
    if overwrite and settings.out is None:
        fail("--overwrite: expected --out with it; a run without takes a name that is free", 2)
    where = device_of(settings.device)
    settings = replace(_checked(settings), device=settings.device or where.type)
    fields = runs.fields_of(changed or (), settings.optimizer)
    distributed.start(where)
    with runs.named(settings, resume, fields) as out:
        record = runs.Record(settings, out, overwrite)
        history = trainer.run(record, where, fields if resume else None, console)
    if as_json and distributed.rank() == 0:
        emit(trainer.result(history, record))
    distributed.stop()


def _checked(settings: Settings) -> Settings:
    """The options as they will be in effect, or the first that makes no sense."""
    from fastmlp.cli import optimizers, sets

    one_of(ACTIVATIONS, settings.activation, "--activation")
    sets.check(settings.dataset, settings.data)
    if settings.compile and settings.engine not in (Engine.auto, Engine.eager):
        fail(
            f"--compile: --engine {settings.engine.value} runs no code of torch's; expected auto or eager", 2
        )
    if settings.clip is not None and not 0 < settings.clip < math.inf:
        fail(f"--clip {settings.clip}: expected a positive number", 2)
    if settings.min_delta and settings.patience is None:
        fail(f"--min-delta {settings.min_delta}: expected --patience with it", 2)
    return optimizers.resolved(settings)
