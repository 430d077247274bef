"""Training, by the engine that runs it fastest."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fastmlp.engine import Loop, choose
from fastmlp.engine.autograd import products
from fastmlp.training import clipping, errors, inputs, schedules
from fastmlp.training.arguments import Loss, Options, require_net
from fastmlp.training.checkpointer import Checkpointer
from fastmlp.training.clipping import Clip, NotFiniteError
from fastmlp.training.data_parallel import Ranks, SharedLoop, ranks_of, reshard
from fastmlp.training.errors import TrainingError
from fastmlp.training.evaluate import Score, device_of, score
from fastmlp.training.history import Epoch, History, stale
from fastmlp.training.identity import Run, digest
from fastmlp.training.inputs import Data
from fastmlp.training.sources import Resident, Source
from fastmlp.training.specs import FeatureSpec, in_mode, spec_of
from fastmlp.training.stream import StreamLoop


def fit(
    net: nn.Module,
    train: Data,
    test: Data | None = None,
    *,
    epochs: int = 10,
    batch_size: int | None = None,
    lr: float = 0.1,
    loss: Loss | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    schedule: schedules.Schedule = None,
    seed: int = 0,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
    engine: str = "auto",
    on_batch: Callable[[int], None] | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
    checkpoint: Path | str | None = None,
    every: int = 1,
    every_steps: int = 0,
    resume: bool = False,
    changed: Collection[str] = (),
    clip_norm: float | None = None,
    patience: int | None = None,
    min_delta: float = 0.0,
) -> History:
    """Train ``net`` for classification or regression, and leave it in the mode it came in.

    Net and data move to ``device`` once; data that are too large move batch by batch, with the same result.
    The batch order of epoch e is the (e+1)-th ``torch.randperm(N, generator=g)`` of a
    ``torch.Generator(device)`` seeded with ``seed``; with any one engine, the same seed gives the same bits.
    A net in DDP, or one that is ``fully_shard``-ed, trains in all its processes: docs/distributed.md.

    Args:
        net: maps (B, features) to logits (B, classes), or for regression to (B, outputs).
        train: `Images` or `Samples`, a pair (x, y) of tensors, arrays, tables or lists, a ``Dataset`` of such
            pairs, or a ``DataLoader``, whose batches and order are its own. x (N, ...) is finite; uint8 is
            x / 255. y is labels (N,), probabilities (N, classes), or targets (N, outputs): docs/data.md.
        test: the same, or None.
        epochs: passes over the data.
        batch_size: examples per step, of which an epoch's last may have fewer; None for 256, or a
            DataLoader's own.
        lr: of plain SGD, if ``optimizer`` is None.
        loss: a module or a function of (logits, labels) or (outputs, targets) that averages, such as
            ``nn.MSELoss()``; None for `CrossEntropyLoss`.
        optimizer: over ``net``'s parameters.
        schedule: of the learning rates over the whole run: see `fastmlp.training.schedules.factors`.
        seed: of the batch order, if that is not a DataLoader's own.
        device: None for the net's own.
        dtype: of the matrix products; parameters stay float32. float32 gives way to an enclosing autocast's.
        engine: "auto", the fastest possible; "eager", autograd for anything; "fused", step by step without
            autograd; on a GPU "graph" and "persistent", an epoch as a whole: docs/engines.md.
        on_batch: called with the number of examples whenever the host is between steps.
        on_epoch: called after each epoch, before its checkpoint.
        checkpoint: file for the run's whole state, saved as it goes and at Ctrl-C or SIGTERM:
            docs/checkpoints.md. A save that fails, as on a full disk, is a `CheckpointWarning`.
        every: save after every so many epochs, and after the last one; 0 for never.
        every_steps: likewise for steps, with engines that run them one by one; 0 for never.
        resume: go on from ``checkpoint``, to the bits of an unbroken run; with no file, warn and start anew.
        changed: what may differ from the checkpoint's run: the optimizer's numbers, such as "lr",
            "schedule", "clip_norm", "patience" (with ``min_delta`` and the test set), "batch_size".
        clip_norm: the norm to which the gradients are scaled down before each update, by autograd.
        patience: stop after so many epochs in a row whose loss on ``test``, or without one on ``train``, was
            not below the lowest before. `History.stopped` says so; the net is the last epoch's, and
            `History.best` says which one was the best.
        min_delta: by how much a loss must be lower to count.

    Raises:
        ValueError: something does not fit, or a checkpoint is damaged or another run's; nothing is written.
        OSError: ``checkpoint`` cannot be written; found before training.
        TrainingError: the loss, a norm to be clipped, or a parameter that is to be saved, is not finite.
        OutOfMemoryError: a TrainingError and a torch.OutOfMemoryError; it says what became of the parameters.
        Interrupted: a KeyboardInterrupt, with ``checkpoint``: where it stopped, and what was saved.
    """
    options = Options(
        epochs, batch_size, lr, loss, optimizer, schedule, seed, device, dtype, engine, on_batch, on_epoch,
        checkpoint, every, every_steps, resume, changed, clip_norm, patience, min_delta,
    )  # fmt: skip
    require_net(net)
    return _fit(net, train, test, options.checked())


class _Job(NamedTuple):
    """A run with all that carries it out."""

    run: Run
    options: Options
    loop: Loop
    train: Source
    test: Source | None
    factors: Tensor  # (epochs * steps,) of the learning rates; (0,) if the steps are not known
    ranks: Ranks | None
    checkpointer: Checkpointer | None
    clip: Clip | None
    history: History

    @property
    def steps(self) -> int | None:
        """An epoch's steps, if known."""
        return self.train.steps(self.run.batch)

    def saved(self) -> str:
        """What there is to go on from, for the end of a message."""
        return f"; {self.checkpointer.saved()}" if self.checkpointer is not None else ""


def _fit(net: nn.Module, train: Data, test: Data | None, options: Options) -> History:
    """`fit` with checked ``options``."""
    device = torch.device(options.device) if options.device is not None else device_of(net)
    ranks = ranks_of(net)
    if ranks is not None and options.checkpoint is not None:
        raise ValueError("checkpoint: expected None for a net in several processes")
    dtype, loss = products(device, options.dtype), options.loss.to(device)
    source = inputs.open_source(train, "train", device, net, options.batch_size)
    tested = None if test is None else inputs.open_source(test, "test", device, net)
    batch = source.size or options.batch_size or inputs.BATCH
    net.to(device)
    features = FeatureSpec(net, device, dtype)
    for data in (source, tested):
        if data is not None:
            data.require(spec_of(features, loss, data.example(), data.name, stacklevel=4))
    reshard(net)  # the optimizer is of the pieces
    optimizer = options.optimizer or torch.optim.SGD(net.parameters(), lr=options.lr)
    facts = {} if options.checkpoint is None else _facts(source, tested, options)
    run = Run(net, loss, optimizer, device, dtype, source.count or 0, batch, options.seed, facts)
    with in_mode(True, net):
        job = _job(run, source, tested, ranks, options)
        with job.checkpointer.signals if job.checkpointer else nullcontext(), job.clip or nullcontext():
            _train(job)
    return job.history


def _job(run: Run, train: Source, test: Source | None, ranks: Ranks | None, options: Options) -> _Job:
    """The run with all that carries it out; if it is resumed, as its checkpoint left it."""
    able = clipping.checked(options.clip_norm, options.engine, run.dtype, run.optimizer)
    factors = _factors(options, train.steps(run.batch))
    if ranks is not None:
        _check_same(ranks, run, train, test, options)
    checkpointer = None
    if options.checkpoint is not None:
        checkpointer = Checkpointer(
            Path(options.checkpoint), options.every, options.every_steps, options.resume, options.changed
        )
        able = checkpointer.engine(able)
    clip = None
    if options.clip_norm is not None:
        clip = Clip(run.optimizer, options.clip_norm, looks=run.device.type == "cpu")
    loop = _loop(able, run, train, ranks)
    history = History(engine=loop.name, reason=_reason(run, train, options, loop))
    if checkpointer is not None:
        checkpointer.start(run, loop, factors, history)
    return _Job(run, options, loop, train, test, factors, ranks, checkpointer, clip, history)


def _factors(options: Options, steps: int | None) -> Tensor:
    """What all steps' learning rates are multiplied by; empty if their number is not known."""
    if steps is not None:
        return schedules.factors(options.schedule, options.epochs * steps)
    if options.schedule not in (None, "constant"):
        raise ValueError(f"schedule: expected None for data of unknown length, got {options.schedule!r}")
    return torch.ones(0, device="cpu", dtype=torch.float64)


def _loop(engine: str, run: Run, source: Source, ranks: Ranks | None) -> Loop:
    """The loop that makes the steps."""
    generator = torch.Generator(run.device).manual_seed(run.seed)
    x, y = (source.x, source.y) if isinstance(source, Resident) else source.example()
    job = choose.Job(run.model, run.loss, run.optimizer, x, y, run.batch, generator, run.dtype)
    if not isinstance(source, Resident):
        return StreamLoop(engine, job, source)
    return choose.loop(engine, job) if ranks is None else SharedLoop(ranks, engine, job)


def _reason(run: Run, source: Source, options: Options, loop: Loop) -> str:
    """Why autograd runs although the fastest engine was asked for."""
    if options.engine != "auto" or loop.name != "eager":
        return ""
    if options.clip_norm is not None:
        return clipping.REASON
    found = choose.recognise(run.model, run.loss, run.optimizer, run.dtype, source.example())
    return found if isinstance(found, str) else ""


def _check_same(ranks: Ranks, run: Run, train: Source, test: Source | None, options: Options) -> None:
    """Check that every process was given the same, and data that can be shared."""
    for source in (train, test):
        if source is not None and not isinstance(source, Resident):
            raise ValueError(
                f"{source.name}: expected tensors, or data small enough to become tensors, for a net in "
                "several processes: each takes its rows by index"
            )
    assert isinstance(train, Resident)
    ranks.check_same(
        train.device,
        train=len(train.y),
        labels=int(digest(train.y)[:15], 16),
        test=0 if test is None else test.count or 0,
        epochs=options.epochs,
        batch_size=run.batch,
        seed=run.seed,
        patience=options.patience or 0,
    )


def _facts(train: Source, test: Source | None, options: Options) -> dict[str, Any]:
    """What determines the result besides net, loss and optimizer, for a checkpoint.

    Raises:
        ValueError: it cannot be said whether the data will be the same.
    """

    def of(source: Source) -> dict[str, str]:
        facts = source.facts()
        if facts is None:
            raise ValueError(
                f"checkpoint: expected None, as {source.name} may give other examples or another order next "
                "time, so that nothing could be resumed; arrays and fixed map-style data sets can"
            )
        return facts

    found: dict[str, Any] = of(train)
    if options.clip_norm is not None:
        found["clip_norm"] = float(options.clip_norm)
    if options.patience is not None:
        found["patience"] = {"epochs": options.patience, "min_delta": float(options.min_delta)}
        if test is not None:
            found["patience"] |= {f"test {name}": fact for name, fact in of(test).items()}
    return found


def _train(job: _Job) -> None:
    """Run the epochs that the history does not have yet, to the last, or until the loss stops improving.

    Raises:
        TrainingError, OutOfMemoryError, Interrupted: as `fit`.
    """
    history, options = job.history, job.options
    start = time.perf_counter() - history.seconds
    history.stopped = _stale(job)  # a resumed run may have been at its end
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


def _stale(job: _Job) -> str:
    options, epochs = job.options, job.history.epochs
    if options.patience is None or len(epochs) >= options.epochs:
        return ""
    return stale(epochs, options.patience, options.min_delta)


def _epoch(job: _Job, number: int) -> Epoch:
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


def _pass(job: _Job, number: int, began: float) -> tuple[float, float]:
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


def _failure(job: _Job, number: int, what: str) -> TrainingError:
    """The error that ``what`` was found in epoch ``number``, with what may help."""
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


def _all_ignored(job: _Job) -> int | None:
    """The label that all examples have, if the loss' mean ignores it; for data known as a whole."""
    loss, y = job.run.loss, getattr(job.train, "y", None)
    ignored = getattr(loss, "ignore_index", None)
    if ignored is None or y is None or y.is_floating_point() or getattr(loss, "reduction", "") != "mean":
        return None
    return ignored if bool((y == ignored).all()) else None
