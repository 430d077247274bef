"""Training over data that lives on the device, by the engine that runs it fastest."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn

from fastmlp.data import Images, batches
from fastmlp.engine import Loop, choose
from fastmlp.engine.autograd import precision
from fastmlp.functional.quantized import INTEGERS
from fastmlp.modules import CrossEntropyLoss
from fastmlp.modules.dequantize import dequantizes
from fastmlp.training import memory, schedules
from fastmlp.training.history import Epoch, History, TrainingError
from fastmlp.training.resume import Keeper
from fastmlp.training.shares import Ranks, SharedLoop, ranks_of, reshard

#: Features and labels: an `Images` set, or a pair of tensors (N, ...) and (N,).
Data = Images | tuple[Tensor, Tensor]


def fit(
    net: nn.Module,
    train: Data,
    test: Data | None = None,
    *,
    epochs: int = 10,
    batch_size: int = 256,
    lr: float = 0.1,
    loss: nn.Module | None = None,
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
) -> History:
    """Train ``net`` as a classifier, and leave it in the mode it came in.

    Data and net move to ``device`` once. Epoch e's batch order is the (e+1)-th
    ``torch.randperm(N, generator=g)`` of a ``torch.Generator(device)`` seeded with ``seed``; the last
    batch may be shorter. Loss and accuracy add up on the device and are read once an epoch. The same
    seed gives the same bits, run to run, with each engine.

    A net in ``DistributedDataParallel``, or one that is ``fully_shard``-ed, trains in all its processes: each
    calls this with the same arguments and computes its part of every batch (and of the test), so that the
    result is one process' up to the order of sums. See docs/distributed.md.

    Args:
        net: maps (B, features) to logits (B, classes).
        train: an `Images` set, or a pair (x, y): x (N, ...) floating, y (N,) int64. x may be uint8, which
            stands for x / 255, or, for a net that begins with a `fastmlp.Dequantize`, uint8 or int8.
        test: the same, or None.
        epochs: passes over the data.
        batch_size: examples a step.
        lr: of plain SGD, where ``optimizer`` is None.
        loss: a module of (logits, labels) that averages; None for `CrossEntropyLoss`.
        optimizer: over ``net``'s parameters.
        schedule: of the learning rates over the whole run, as factors of the optimizer's own: see
            `fastmlp.training.schedules.factors`.
        seed: of the batch order.
        device: None for the net's own.
        dtype: of the matrix products. For bfloat16 and float16 parameters stay float32.
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
            as "lr", "schedule", between epochs "batch_size". Anything else that differs is refused.

    Raises:
        ValueError: data, numbers, or an engine that do not fit, with the reason; a checkpoint that is
            damaged or another run's, before anything is written into the net.
        OSError: ``checkpoint`` cannot be written, before the training.
        TrainingError: the loss, or a parameter that is to be saved, is not finite. The net then holds what
            the steps up to there made of it.
        OutOfMemoryError: a TrainingError and a torch.OutOfMemoryError; it says what became of the parameters.
        Interrupted: a KeyboardInterrupt, with ``checkpoint``: where it stopped, and what was saved.
    """
    device = torch.device(device) if device is not None else _device_of(net)
    ranks = ranks_of(net)
    if ranks is not None and checkpoint is not None:
        raise ValueError("checkpoint: expected None for a net in several processes")
    train = _checked(train, "train", device, net)
    test = None if test is None else _checked(test, "test", device, net)
    for name, value, least in (("epochs", epochs, 0), ("batch_size", batch_size, 1)):
        if value < least:
            raise ValueError(f"{name}: expected at least {least}, got {value}")
    if dtype not in choose.DTYPES:  # autocast would warn and go on in float32
        raise ValueError(f"dtype: expected one of {', '.join(map(str, choose.DTYPES))}, got {dtype}")
    net.to(device)
    loss = (loss or CrossEntropyLoss()).to(device)
    with precision(device, dtype):
        _check_labels(net, loss, *train)
    reshard(net)  # the optimizer is of the pieces
    optimizer = optimizer or torch.optim.SGD(net.parameters(), lr=lr)
    x, y = train
    if ranks is not None:
        ranks.check_same(
            device,
            train=len(y),
            labels=int((y * torch.arange(len(y), device=device)).sum()),
            test=0 if test is None else len(test[1]),
            epochs=epochs,
            batch_size=batch_size,
            seed=seed,
        )
    steps = -(-len(y) // batch_size)
    factors = schedules.factors(schedule, epochs * steps)
    generator = torch.Generator(device).manual_seed(seed)
    keeper = None if checkpoint is None else Keeper(Path(checkpoint), every, every_steps, resume, changed)
    training = net.training
    try:
        net.train()
        job = choose.Job(net, loss, optimizer, x, y, batch_size, generator, dtype)
        if ranks is not None:
            loop: Loop = SharedLoop(ranks, engine, job)
        else:
            loop = choose.loop(engine if keeper is None else keeper.engine(engine), job)
        history = History(engine=loop.name)
        if keeper is not None:
            keeper.start(job, loop, seed, factors, history)
        with keeper or nullcontext():
            _run(job, loop, factors, test, history, keeper, ranks, on_batch, on_epoch)
    finally:
        net.train(training)
    return history


def _run(
    job: choose.Job,
    loop: Loop,
    factors: Tensor,
    test: tuple[Tensor, Tensor] | None,
    history: History,
    keeper: Keeper | None,
    ranks: Ranks | None,
    on_batch: Callable[[int], None] | None,
    on_epoch: Callable[[Epoch], None] | None,
) -> None:
    """The epochs that ``history`` does not have yet."""
    count = len(job.y)
    steps = -(-count // job.batch)
    start = time.perf_counter() - history.seconds

    def after_step(examples: int) -> None:
        if on_batch is not None:
            on_batch(examples)
        if keeper is not None:
            keeper.after_step(time.perf_counter() - began)

    def left() -> str:
        return f"; {keeper.left()}" if keeper is not None else ""

    between = None if on_batch is None and keeper is None else after_step
    for number in range(len(history.epochs) + 1, len(factors) // steps + 1):
        job.model.train()
        began = time.perf_counter() - (keeper.spent() if keeper is not None else 0.0)
        with memory.explained(loop, number, job.batch, left):
            total, right = loop.epoch(factors[(number - 1) * steps : number * steps], between)
        seconds = time.perf_counter() - began  # the sums were read, so the device is done
        mean = total / count
        if not math.isfinite(mean):
            step = f", step {loop.done} of {steps}" if loop.done else ""
            raise TrainingError(f"the loss is {mean} in epoch {number}{step}; a smaller lr may help{left()}")
        with memory.explained(loop, number, job.batch, left):
            tested = None if test is None else _accuracy(job.model, *test, 4096, job.dtype, ranks)
        epoch = Epoch(number, mean, right / count, tested, seconds, count / seconds)
        history.epochs.append(epoch)
        history.seconds = time.perf_counter() - start
        if on_epoch is not None:
            on_epoch(epoch)
        if keeper is not None:
            keeper.after_epoch()
    history.seconds = time.perf_counter() - start


@torch.no_grad()
def accuracy(net: nn.Module, data: Data, batch_size: int = 4096, dtype: torch.dtype = torch.float32) -> float:
    """The share of ``data`` that ``net`` classifies right, in [0, 1]. One read at the end.

    Raises:
        ValueError: as `fit`.
    """
    return _accuracy(net, *_checked(data, "data", _device_of(net), net), batch_size, dtype)


@torch.no_grad()
def _accuracy(
    net: nn.Module, x: Tensor, y: Tensor, batch_size: int, dtype: torch.dtype, ranks: Ranks | None = None
) -> float:
    """`accuracy`, a part of every batch in each of the ``ranks``."""
    correct, training = torch.zeros((), device=y.device, dtype=torch.int64), net.training
    net.eval()
    try:
        for inputs, labels in batches(x, y, batch_size, raw=dequantizes(net)):
            if ranks is not None:
                own = ranks.part(len(labels))
                inputs, labels = inputs[own], labels[own]
            with precision(y.device, dtype):
                correct += (net(inputs).argmax(1) == labels).sum()
    finally:
        net.train(training)
    if ranks is not None:
        reshard(net)
    right = correct.item()
    return (right if ranks is None else ranks.total(right, device=y.device)[0]) / len(y)


@torch.no_grad()
def _check_labels(net: nn.Module, loss: nn.Module, x: Tensor, y: Tensor) -> None:
    """The labels against the classes of ``net``: on a GPU one out of range is a NaN, or an abort."""
    training = net.training
    net.eval()  # one example has no batch statistics
    try:
        ((example, _),) = batches(x[:1], y[:1], 1, raw=dequantizes(net))
        logits = net(example)
    finally:
        net.train(training)
    if logits.dim() != 2:
        raise ValueError(f"net: expected logits (B, classes), got {tuple(logits.shape)} for one example")
    counted = y[y != getattr(loss, "ignore_index", -100)]
    low, high = (int(counted.min()), int(counted.max())) if len(counted) else (0, 0)
    if low < 0 or high >= logits.shape[1]:
        raise ValueError(f"train: expected labels from 0 to {logits.shape[1] - 1}, got {low} to {high}")


def _device_of(net: nn.Module) -> torch.device:
    return next((parameter.device for parameter in net.parameters()), torch.device("cpu"))


def _checked(data: Data, name: str, device: torch.device, net: nn.Module) -> tuple[Tensor, Tensor]:
    """Features and labels on ``device``; uint8 images as flat rows of pixels."""
    x, y = (data.images.flatten(1), data.labels) if isinstance(data, Images) else data
    if len(x) == 0:
        raise ValueError(f"{name}: expected at least one example, got {tuple(x.shape)}")
    if y.shape != (len(x),) or y.dtype != torch.int64:
        raise ValueError(f"{name}: expected labels ({len(x)},) torch.int64, got {tuple(y.shape)} {y.dtype}")
    if not (x.is_floating_point() or x.dtype in (INTEGERS if dequantizes(net) else (torch.uint8,))):
        integers = "uint8 or int8" if dequantizes(net) else "uint8"
        raise ValueError(f"{name}: expected features that are floating or {integers}, got {x.dtype}")
    return x.to(device), y.to(device)
