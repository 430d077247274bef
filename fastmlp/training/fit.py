"""Training, by the engine that runs it fastest."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastmlp.engine import Loop, choose
from fastmlp.engine.autograd import products
from fastmlp.engine.checks import require_optimizer
from fastmlp.training import clipping, expected, inputs, schedules, stream
from fastmlp.training.arguments import Loss, loss_of, require_callback, require_net, require_rate, whole
from fastmlp.training.clipping import Clip
from fastmlp.training.epochs import Job
from fastmlp.training.epochs import run as run_epochs
from fastmlp.training.evaluate import device_of
from fastmlp.training.features import Features
from fastmlp.training.history import Epoch, History
from fastmlp.training.identity import Run, digest
from fastmlp.training.inputs import Data
from fastmlp.training.resume import Keeper
from fastmlp.training.shares import Ranks, SharedLoop, ranks_of, reshard
from fastmlp.training.sources import Resident, Source

_LEAST_SEED = -(1 << 63)  # of torch's


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
    """Train ``net`` to classify or for regression, and leave it in the mode it came in.

    Net and data move to ``device`` once; data that are too large for that are sent there batch by batch,
    with the same result: docs/data.md. Epoch e's batch order is the (e+1)-th
    ``torch.randperm(N, generator=g)`` of a ``torch.Generator(device)`` seeded with ``seed``; the last
    batch may be shorter. Loss and accuracy add up on the device and are read once an epoch. The same
    seed gives the same bits, run to run, with each engine.

    A net in ``DistributedDataParallel``, or one that is ``fully_shard``-ed, trains in all its processes: each
    calls this with the same arguments and computes its part of every batch (and of the test), so that the
    result is one process' up to the order of sums. See docs/distributed.md.

    Args:
        net: maps (B, features) to logits (B, classes), or for regression to (B, outputs).
        train: an `Images` or `Samples` set; a pair (x, y) of tensors, NumPy arrays, memmaps, pandas or polars
            tables, or lists; a map-style or iterable ``Dataset`` of such pairs; or a ``DataLoader``, whose
            batches and order are its own. x (N, ...) is finite numbers. Whole ones become floating for a net
            that takes no others; but uint8 stands for x / 255, unless the net begins with a
            `fastmlp.Dequantize`, which takes uint8 and int8. y is labels (N,), the probability of each class
            (N, classes), or targets (N, outputs).
        test: the same, or None.
        epochs: passes over the data.
        batch_size: examples a step; None for 256, or for a DataLoader its own.
        lr: of plain SGD, where ``optimizer`` is None.
        loss: a module or a function of (logits, labels) or (outputs, targets) that averages, such as
            ``nn.MSELoss()``; None for `CrossEntropyLoss`.
        optimizer: over ``net``'s parameters.
        schedule: of the learning rates over the whole run, as factors of the optimizer's own: see
            `fastmlp.training.schedules.factors`.
        seed: of the batch order, where that is not a DataLoader's own.
        device: None for the net's own.
        dtype: of the matrix products. For bfloat16 and float16 parameters stay float32; float32 stands for
            an enclosing ``torch.autocast``'s, where there is one.
        engine: "eager", autograd for any net, loss and optimizer; for a chain of linear layers with a
            cross-entropy and SGD, Adam or AdamW (on a CPU any optimizer) also "fused", step by step
            without autograd, and on a GPU "graph", an epoch as a CUDA graph, and "persistent", an
            epoch as one cooperative launch. "auto" takes the fastest that can: on a GPU the one that
            measured fastest there on this problem, once, remembered in the cache directory.
        on_batch: called with the number of examples whenever the host is between steps: after each
            one, or, where an epoch runs as a whole, after the epoch.
        on_epoch: called after each epoch, before its checkpoint.
        checkpoint: file for the run's whole state: see docs/checkpoints.md. With one, a first Ctrl-C or
            SIGTERM stops between two steps (after the epoch, where one runs as a whole) and saves. Where a
            periodic save fails, as on a full disk, a `CheckpointWarning` says so and training goes on.
        every: how many epochs pass between two saves, and the last epoch is saved; 0 for none.
        every_steps: likewise for steps, with the engines that run them one by one; 0 for none.
        resume: go on from ``checkpoint``: to the bits of an unbroken run. A file that is not there is a
            warning, and a new start. Without it the first save replaces what is there.
        changed: what may be another than in the checkpoint's run: names of the optimizer's numbers, such
            as "lr", "schedule", "clip_norm", "patience" (with ``min_delta`` and the test set), between epochs
            "batch_size". Anything else that differs is refused.
        clip_norm: before each update the gradients are scaled down to this norm, where theirs is greater, as
            by ``torch.nn.utils.clip_grad_norm_``. It needs them all at once, so autograd runs the steps.
        patience: stop after so many epochs in a row whose loss on ``test``, or without one on ``train``, was
            not less than the least before. `History.stopped` then says so. The net stays as the last epoch
            left it; `History.best` tells which one was the best.
        min_delta: by how much a loss must be less to count.

    Raises:
        ValueError: data, numbers, or an engine that do not fit, with the reason; a checkpoint that is
            damaged or another run's, before anything is written into the net.
        OSError: ``checkpoint`` cannot be written, before the training.
        TrainingError: the loss, a norm to be clipped, or a parameter that is to be saved, is not finite. The
            net then holds what the steps up to there made of it.
        OutOfMemoryError: a TrainingError and a torch.OutOfMemoryError; it says what became of the parameters.
        Interrupted: a KeyboardInterrupt, with ``checkpoint``: where it stopped, and what was saved.
    """
    require_net(net)
    device = torch.device(device) if device is not None else device_of(net)
    ranks = ranks_of(net)
    if ranks is not None and checkpoint is not None:
        raise ValueError("checkpoint: expected None for a net in several processes")
    epochs, batch_size, patience = _numbers(epochs, batch_size, patience, min_delta)
    seed = whole(seed, "seed", _LEAST_SEED)
    _check_resume(checkpoint, resume, changed)
    for name, value in (("on_batch", on_batch), ("on_epoch", on_epoch)):
        require_callback(value, name)
    if optimizer is None:
        require_rate(lr)
    else:
        require_optimizer(optimizer)
    loss = loss_of(loss).to(device)
    if dtype not in choose.DTYPES:  # autocast would warn and go on in float32
        raise ValueError(f"dtype: expected one of {', '.join(map(str, choose.DTYPES))}, got {dtype}")
    dtype = products(device, dtype)
    source = inputs.take(train, "train", device, net, batch_size)
    tested = None if test is None else inputs.take(test, "test", device, net)
    batch = source.size or batch_size or inputs.BATCH
    net.to(device)
    features = Features(net, device, dtype)
    for data in (source, tested):
        if data is not None:
            data.require(expected.of(features, loss, data.example(), data.name))
    reshard(net)  # the optimizer is of the pieces
    optimizer = optimizer or torch.optim.SGD(net.parameters(), lr=lr)
    able = clipping.checked(clip_norm, engine, dtype, optimizer)
    steps = source.steps(batch)
    if steps is None and schedule not in (None, "constant"):
        raise ValueError(f"schedule: expected None for data of unknown length, got {schedule!r}")
    factors = (
        schedules.factors(schedule, epochs * steps)
        if steps is not None
        else torch.ones(0, device="cpu", dtype=torch.float64)
    )
    if ranks is not None:
        _check_same(ranks, source, tested, epochs=epochs, batch_size=batch, seed=seed, patience=patience or 0)
    facts = {} if checkpoint is None else _facts(source, tested, clip_norm, patience, min_delta)
    run = Run(net, loss, optimizer, device, dtype, source.count or 0, batch, seed, facts)
    often = whole(every, "every", 0), whole(every_steps, "every_steps", 0)
    keeper = None if checkpoint is None else Keeper(Path(checkpoint), *often, resume, changed)
    clip = None if clip_norm is None else Clip(optimizer, clip_norm, looks=device.type == "cpu")
    training = net.training
    try:
        net.train()
        loop = _loop(able if keeper is None else keeper.engine(able), run, source, ranks)
        history = History(engine=loop.name)
        if engine == "auto" and loop.name == "eager":
            found = (
                clipping.REASON if clip else choose.recognise(net, loss, optimizer, dtype, source.example())
            )
            history.reason = found if isinstance(found, str) else ""
        if keeper is not None:
            keeper.start(run, loop, factors, history)
        job = Job(
            run, loop, source, tested, epochs, steps, factors, ranks, keeper, clip, patience, min_delta,
            on_batch, on_epoch,
        )  # fmt: skip
        with keeper or nullcontext(), clip or nullcontext():
            run_epochs(job, history)
    finally:
        net.train(training)
    return history


def _loop(engine: str, run: Run, source: Source, ranks: Ranks | None) -> Loop:
    """What makes the steps."""
    generator = torch.Generator(run.device).manual_seed(run.seed)
    what = run.model, run.loss, run.optimizer
    if not isinstance(source, Resident):
        return stream.loop(engine, *what, source, run.batch, generator, run.dtype)
    job = choose.Job(*what, source.x, source.y, run.batch, generator, run.dtype)
    return choose.loop(engine, job) if ranks is None else SharedLoop(ranks, engine, job)


def _check_same(ranks: Ranks, train: Source, test: Source | None, **facts: int) -> None:
    """See that every process was given the same, and what can be shared."""
    for source in (train, test):
        if source is not None and not isinstance(source, Resident):
            raise ValueError(
                f"{source.name}: expected tensors, or what is small enough to become some, for a net in "
                "several processes: each takes its rows by index"
            )
    assert isinstance(train, Resident)
    ranks.check_same(
        train.device,
        train=len(train.y),
        labels=int(digest(train.y)[:15], 16),
        test=0 if test is None else test.count or 0,
        **facts,
    )


def _numbers(
    epochs: int, batch_size: int | None, patience: int | None, min_delta: float
) -> tuple[int, int | None, int | None]:
    """Those that are whole, as plain ints."""
    epochs = whole(epochs, "epochs", 0)
    batch_size = None if batch_size is None else whole(batch_size, "batch_size", 1)
    patience = None if patience is None else whole(patience, "patience", 1)
    if not 0 <= min_delta < math.inf:
        raise ValueError(f"min_delta: expected at least 0, got {min_delta}")
    if min_delta and patience is None:
        raise ValueError(f"min_delta: expected 0 without patience, got {min_delta}")
    return epochs, batch_size, patience


def _check_resume(checkpoint: Path | str | None, resume: bool, changed: Collection[str]) -> None:
    """See that there is something to go on from where it is asked for."""
    if resume and checkpoint is None:
        raise ValueError(f"resume: expected False without a checkpoint, got {resume!r}")
    if changed and not resume:
        raise ValueError(f"changed: expected nothing without resume, got {changed!r}")


def _facts(
    train: Source,
    test: Source | None,
    clip_norm: float | None,
    patience: int | None,
    min_delta: float,
) -> dict[str, Any]:
    """What decides on the result besides net, loss and optimizer, for a checkpoint.

    Raises:
        ValueError: data of which it cannot be said whether they are the same.
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
    if clip_norm is not None:
        found["clip_norm"] = float(clip_norm)
    if patience is not None:
        found["patience"] = {"epochs": patience, "min_delta": float(min_delta)}
        if test is not None:
            found["patience"] |= {f"test {name}": fact for name, fact in of(test).items()}
    return found
