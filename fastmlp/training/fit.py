"""Training over data that lives on the device, by the engine that runs it fastest."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from fastmlp.data import Images, batches
from fastmlp.engine import choose
from fastmlp.engine.autograd import precision
from fastmlp.functional.quantized import INTEGERS
from fastmlp.modules import CrossEntropyLoss
from fastmlp.modules.dequantize import dequantizes
from fastmlp.training import schedules

#: Features and labels: an `Images` set, or a pair of tensors (N, ...) and (N,).
Data = Images | tuple[Tensor, Tensor]


class TrainingError(RuntimeError):
    """Training cannot go on; the message says where it stopped."""


@dataclass(frozen=True)
class Epoch:
    """What one epoch gave."""

    number: int  # from 1
    train_loss: float  # mean over the examples, each before its own step
    train_accuracy: float  # likewise, in [0, 1]
    test_accuracy: float | None  # after the epoch; None without a test set
    seconds: float  # of training, without the test
    examples_per_second: float

    def __str__(self) -> str:
        tested = "" if self.test_accuracy is None else f"test accuracy {self.test_accuracy:.4f}  "
        return (
            f"epoch {self.number:3d}  train loss {self.train_loss:.4f}  "
            f"train accuracy {self.train_accuracy:.4f}  {tested}{self.examples_per_second:,.0f} examples/s"
        )


@dataclass
class History:
    """Every epoch, the seconds that all of it took, and which engine ran."""

    epochs: list[Epoch] = field(default_factory=list)
    seconds: float = 0.0
    engine: str = ""


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
) -> History:
    """Train ``net`` as a classifier, and leave it in the mode it came in.

    Data and net move to ``device`` once. Epoch e's batch order is the (e+1)-th
    ``torch.randperm(N, generator=g)`` of a ``torch.Generator(device)`` seeded with ``seed``; the last
    batch may be shorter. Loss and accuracy add up on the device and are read once an epoch. The same
    seed gives the same bits, run to run, with each engine.

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
        on_epoch: called after each epoch.

    Raises:
        ValueError: data, numbers, or an engine that do not fit, with the reason.
        TrainingError: the loss is not finite at the end of an epoch.
    """
    device = torch.device(device) if device is not None else _device_of(net)
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
    optimizer = optimizer or torch.optim.SGD(net.parameters(), lr=lr)
    x, y = train
    steps = -(-len(y) // batch_size)
    factors = schedules.factors(schedule, epochs * steps)
    generator = torch.Generator(device).manual_seed(seed)
    training, start = net.training, time.perf_counter()
    try:
        net.train()
        job = choose.Job(net, loss, optimizer, x, y, batch_size, generator, dtype)
        loop = choose.loop(engine, job)
        history = History(engine=loop.name)
        for number in range(1, epochs + 1):
            net.train()
            began = time.perf_counter()
            total, correct = loop.epoch(factors[(number - 1) * steps : number * steps], on_batch)
            seconds = time.perf_counter() - began  # the sums were read, so the device is done
            mean = total / len(y)
            if not mean < float("inf"):  # NaN is not less either
                raise TrainingError(f"the loss is {mean} in epoch {number}; a smaller lr may help")
            tested = None if test is None else accuracy(net, test, dtype=dtype)
            epoch = Epoch(number, mean, correct / len(y), tested, seconds, len(y) / seconds)
            history.epochs.append(epoch)
            if on_epoch is not None:
                on_epoch(epoch)
    finally:
        net.train(training)
    history.seconds = time.perf_counter() - start
    return history


@torch.no_grad()
def accuracy(net: nn.Module, data: Data, batch_size: int = 4096, dtype: torch.dtype = torch.float32) -> float:
    """The share of ``data`` that ``net`` classifies right, in [0, 1]. One read at the end.

    Raises:
        ValueError: as `fit`.
    """
    device, training = _device_of(net), net.training
    x, y = _checked(data, "data", device, net)
    correct = torch.zeros((), device=device, dtype=torch.int64)
    net.eval()
    try:
        for inputs, labels in batches(x, y, batch_size, raw=dequantizes(net)):
            with precision(device, dtype):
                correct += (net(inputs).argmax(1) == labels).sum()
    finally:
        net.train(training)
    return correct.item() / len(y)


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
