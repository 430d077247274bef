"""The epochs of a run: after each one the test, the history, the checkpoint."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import NamedTuple, NoReturn

from torch import Tensor

from fastmlp.engine import Loop
from fastmlp.training import memory
from fastmlp.training.clipping import Clip, NotFiniteError
from fastmlp.training.evaluate import score
from fastmlp.training.history import Epoch, History, TrainingError, stale
from fastmlp.training.identity import Run
from fastmlp.training.resume import Keeper
from fastmlp.training.shares import Ranks
from fastmlp.training.sources import Source
from fastmlp.training.stream import StreamLoop


class Job(NamedTuple):
    """What there is to do, once it is known what runs it."""

    run: Run
    loop: Loop
    train: Source
    test: Source | None
    epochs: int
    steps: int | None  # an epoch, where that is known
    factors: Tensor  # (epochs * steps,) of the learning rates; (0,) where it is not
    ranks: Ranks | None
    keeper: Keeper | None
    clip: Clip | None
    patience: int | None
    min_delta: float
    on_batch: Callable[[int], None] | None
    on_epoch: Callable[[Epoch], None] | None


def run(job: Job, history: History) -> None:
    """Those that ``history`` does not have yet, until the last one or until it gets no better.

    Raises:
        TrainingError, OutOfMemoryError, Interrupted: as `fit`.
    """
    start = time.perf_counter() - history.seconds
    history.stopped = _stale(job, history)  # a run that is resumed may have been at its end
    while len(history.epochs) < job.epochs and not history.stopped:
        epoch = _epoch(job, len(history.epochs) + 1)
        history.epochs.append(epoch)
        history.seconds = time.perf_counter() - start
        history.stopped = _stale(job, history)
        if job.on_epoch is not None:
            job.on_epoch(epoch)
        if job.keeper is not None:
            job.keeper.after_epoch(last=len(history.epochs) == job.epochs or history.stopped != "")
    history.seconds = time.perf_counter() - start


def _stale(job: Job, history: History) -> str:
    if job.patience is None or len(history.epochs) >= job.epochs:
        return ""
    return stale(history.epochs, job.patience, job.min_delta)


def _all_ignored(job: Job) -> int | None:
    """The label that all examples have and the loss' mean leaves out, if so; of data known as a whole."""
    ignored, y = getattr(job.run.loss, "ignore_index", None), getattr(job.train, "y", None)
    if (
        ignored is None
        or y is None
        or y.is_floating_point()
        or getattr(job.run.loss, "reduction", "") != "mean"
    ):
        return None
    return ignored if bool((y == ignored).all()) else None


def _epoch(job: Job, number: int) -> Epoch:
    model, loss, batch, dtype = job.run.model, job.run.loss, job.run.batch, job.run.dtype
    loop, keeper = job.loop, job.keeper
    model.train()
    began = time.perf_counter() - (keeper.spent() if keeper is not None else 0.0)
    steps = job.steps or 0
    factors = job.factors[(number - 1) * steps : number * steps]

    def after_step(examples: int) -> None:
        if job.on_batch is not None:
            job.on_batch(examples)
        if keeper is not None:
            keeper.after_step(time.perf_counter() - began)

    def left() -> str:
        return f"; {keeper.left()}" if keeper is not None else ""

    def stop(what: str) -> NoReturn:
        step = f", step {loop.done}" + (f" of {job.steps}" if job.steps else "") if loop.done else ""
        if (label := _all_ignored(job)) is not None:
            raise TrainingError(
                f"{what} in epoch {number}{step}: every label is {label}, which the loss ignores, and a mean "
                f"over none is nan{left()}"
            )
        if number == loop.done == 1:
            raise TrainingError(
                f"{what} in epoch {number}{step}, before any update: look for parameters that are not finite "
                f"and numbers too large for {dtype}{left()}"
            )
        raise TrainingError(f"{what} in epoch {number}{step}; a smaller lr may help{left()}")

    between = None if job.on_batch is None and keeper is None else after_step
    try:
        with memory.explained(loop, number, batch, left):
            total, right = loop.epoch(factors, between)
        if job.clip is not None:
            job.clip.check()
    except NotFiniteError as error:
        stop(f"the norm of the gradients is {error}")
    seconds = time.perf_counter() - began  # the sums were read, so the device is done
    count = job.train.count
    if count is None:
        assert isinstance(loop, StreamLoop)
        count = loop.seen
    mean = total / count
    if not math.isfinite(mean):
        stop(f"the loss is {mean}")
    tested = None
    if job.test is not None:
        with memory.explained(loop, number, batch, left):
            tested = score(model, loss, job.test, dtype, job.ranks)
    return Epoch(
        number,
        train_loss=mean,
        train_accuracy=right / count if job.train.has_answers else None,
        test_accuracy=None if tested is None else tested.accuracy,
        seconds=seconds,
        examples_per_second=count / seconds,
        test_loss=None if tested is None else tested.loss,
    )
