"""The epochs of a run: after each one the test, the history, the checkpoint."""

from __future__ import annotations

import math
import time
from typing import NamedTuple

from torch import Tensor

from fastmlp.engine import Loop
from fastmlp.training import errors
from fastmlp.training.arguments import Options
from fastmlp.training.checkpointer import Checkpointer
from fastmlp.training.clipping import Clip, NotFiniteError
from fastmlp.training.data_parallel import Ranks
from fastmlp.training.errors import TrainingError
from fastmlp.training.evaluate import Score, score
from fastmlp.training.history import Epoch, History, stale
from fastmlp.training.identity import Run
from fastmlp.training.sources import Source
from fastmlp.training.stream import StreamLoop


class Job(NamedTuple):
    """What there is to do, once it is known what runs it."""

    run: Run
    options: Options
    loop: Loop
    train: Source
    test: Source | None
    factors: Tensor  # (epochs * steps,) of the learning rates; (0,) where the steps are not known
    ranks: Ranks | None
    checkpointer: Checkpointer | None
    clip: Clip | None
    history: History

    @property
    def steps(self) -> int | None:
        """An epoch's, where that is known."""
        return self.train.steps(self.run.batch)

    def saved(self) -> str:
        """What there is to go on from, to end a message with."""
        return f"; {self.checkpointer.saved()}" if self.checkpointer is not None else ""


def train(job: Job) -> None:
    """The epochs that ``job``'s history does not have yet, until the last one or until it gets no better.

    Raises:
        TrainingError, OutOfMemoryError, Interrupted: as `fit`.
    """
    history, options = job.history, job.options
    start = time.perf_counter() - history.seconds
    history.stopped = _stale(job)  # a run that is resumed may have been at its end
    while len(history.epochs) < options.epochs and not history.stopped:
        epoch = _epoch(job, len(history.epochs) + 1)
        history.epochs.append(epoch)
        history.seconds = time.perf_counter() - start
        history.stopped = _stale(job)
        if options.on_epoch is not None:
            options.on_epoch(epoch)
        if job.checkpointer is not None:
            job.checkpointer.after_epoch(last=len(history.epochs) == options.epochs or history.stopped != "")
    history.seconds = time.perf_counter() - start


def _stale(job: Job) -> str:
    options, epochs = job.options, job.history.epochs
    if options.patience is None or len(epochs) >= options.epochs:
        return ""
    return stale(epochs, options.patience, options.min_delta)


def _epoch(job: Job, number: int) -> Epoch:
    job.run.model.train()
    began = time.perf_counter() - (job.checkpointer.spent() if job.checkpointer is not None else 0.0)
    try:
        total, right = _pass(job, number, began)
        if job.clip is not None:
            job.clip.check()
    except NotFiniteError as error:
        raise _failure(job, number, f"the norm of the gradients is {error}") from error
    seconds = time.perf_counter() - began  # the sums were read, so the device is done
    count = job.train.count
    if count is None:
        assert isinstance(job.loop, StreamLoop)
        count = job.loop.seen
    mean = total / count
    if not math.isfinite(mean):
        raise _failure(job, number, f"the loss is {mean}")
    tested: Score | None = None
    if job.test is not None:
        with errors.out_of_memory(job.loop, number, job.run.batch, job.saved):
            tested = score(job.run.model, job.run.loss, job.test, job.run.dtype, job.ranks)
    return Epoch(
        number,
        train_loss=mean,
        train_accuracy=right / count if job.train.has_answers else None,
        test_accuracy=tested.accuracy if tested is not None else None,
        seconds=seconds,
        examples_per_second=count / seconds,
        test_loss=tested.loss if tested is not None else None,
    )


def _pass(job: Job, number: int, began: float) -> tuple[float, float]:
    """Epoch ``number``'s steps: Σ loss * rows, and the number of right answers."""
    on_batch, checkpointer, steps = job.options.on_batch, job.checkpointer, job.steps or 0

    def after_step(examples: int) -> None:
        if on_batch is not None:
            on_batch(examples)
        if checkpointer is not None:
            checkpointer.after_step(time.perf_counter() - began)

    watched = on_batch is not None or checkpointer is not None
    factors = job.factors[(number - 1) * steps : number * steps]
    with errors.out_of_memory(job.loop, number, job.run.batch, job.saved):
        return job.loop.epoch(factors, after_step if watched else None)


def _failure(job: Job, number: int, what: str) -> TrainingError:
    """That ``what`` was found in epoch ``number``, with what may help."""
    step, done = "", job.loop.done
    if done:
        step = f", step {done}" + (f" of {job.steps}" if job.steps else "")
    label = _all_ignored(job)
    if label is not None:
        return TrainingError(
            f"{what} in epoch {number}{step}: every label is {label}, which the loss ignores, and a mean "
            f"over none is nan{job.saved()}"
        )
    if number == done == 1:
        return TrainingError(
            f"{what} in epoch {number}{step}, before any update: look for parameters that are not finite "
            f"and numbers too large for {job.run.dtype}{job.saved()}"
        )
    return TrainingError(f"{what} in epoch {number}{step}; a smaller lr may help{job.saved()}")


def _all_ignored(job: Job) -> int | None:
    """The label that all examples have and the loss' mean leaves out, if so; of data known as a whole."""
    loss, y = job.run.loss, getattr(job.train, "y", None)
    ignored = getattr(loss, "ignore_index", None)
    if ignored is None or y is None or y.is_floating_point() or getattr(loss, "reduction", "") != "mean":
        return None
    return ignored if bool((y == ignored).all()) else None
