"""The training loop over data that lives on the device."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from fastmlp.data import Images, batches
from fastmlp.modules import CrossEntropyLoss, Sequential

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
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
    """Every epoch, and the seconds that all of it took."""

    epochs: list[Epoch] = field(default_factory=list)
    seconds: float = 0.0


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
    seed: int = 0,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
    on_batch: Callable[[int], None] | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
) -> History:
    """Train ``net`` as a classifier, and leave it in the mode it came in.

    Data and net move to ``device`` once. Epoch e's batch order is the (e+1)-th
    ``torch.randperm(N, generator=g)`` of a ``torch.Generator(device)`` seeded with ``seed``; the last
    batch may be shorter. Loss and accuracy add up on the device and are read once an epoch.

    Args:
        net: maps (B, features) to logits (B, classes).
        train: an `Images` set, or a pair (x, y): x (N, ...) floating, y (N,) int64.
        test: the same, or None.
        epochs: passes over the data.
        batch_size: examples a step.
        lr: of plain SGD, where ``optimizer`` is None.
        loss: a module of (logits, labels) that averages; None for `CrossEntropyLoss`.
        optimizer: over ``net``'s parameters.
        seed: of the batch order.
        device: None for the net's own.
        dtype: of the matrix products. For bfloat16 and float16 parameters stay float32 (autocast), and
            float16 scales its gradients.
        on_batch: called with the number of examples after each step.
        on_epoch: called after each epoch.

    Raises:
        ValueError: data or numbers that do not fit.
        TrainingError: the loss is not finite at the end of an epoch.
    """
    device = torch.device(device) if device is not None else _device_of(net)
    train = _checked(train, "train", device)
    test = None if test is None else _checked(test, "test", device)
    for name, value, least in (("epochs", epochs, 0), ("batch_size", batch_size, 1)):
        if value < least:
            raise ValueError(f"{name}: expected at least {least}, got {value}")
    if dtype not in _DTYPES:  # autocast would warn and go on in float32
        raise ValueError(f"dtype: expected one of {', '.join(map(str, _DTYPES))}, got {dtype}")
    net.to(device)
    loss = (loss or CrossEntropyLoss()).to(device)
    with _precision(device, dtype):
        _check_labels(net, loss, *train)
    optimizer = optimizer or torch.optim.SGD(net.parameters(), lr=lr)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    generator = torch.Generator(device).manual_seed(seed)
    history, training, start = History(), net.training, time.perf_counter()
    try:
        for number in range(1, epochs + 1):
            began = time.perf_counter()
            net.train()
            order = torch.randperm(len(train[0]), generator=generator, device=device)
            steps = batches(*train, batch_size, order)
            total, correct = _train_epoch(net, loss, optimizer, scaler, steps, device, dtype, on_batch)
            seconds = time.perf_counter() - began  # the sums were read, so the device is done
            count = len(order)
            if not total / count < float("inf"):  # NaN is not less either
                raise TrainingError(f"the loss is {total / count} in epoch {number}; a smaller lr may help")
            tested = None if test is None else accuracy(net, test, dtype=dtype)
            epoch = Epoch(number, total / count, correct / count, tested, seconds, count / seconds)
            history.epochs.append(epoch)
            if on_epoch is not None:
                on_epoch(epoch)
    finally:
        net.train(training)
    history.seconds = time.perf_counter() - start
    return history


def _train_epoch(
    net: nn.Module,
    loss: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    steps: Iterable[tuple[Tensor, Tensor]],
    device: torch.device,
    dtype: torch.dtype,
    on_batch: Callable[[int], None] | None,
) -> tuple[float, float]:
    """One pass: the sum of the examples' losses, and how many were right. One read at the end."""
    sums = torch.zeros(2, device=device, dtype=torch.float64)
    for x, y in steps:
        with _precision(device, dtype):
            value, logits = _objective(net, loss, x, y)
        optimizer.zero_grad()
        scaler.scale(value).backward()
        scaler.step(optimizer)
        scaler.update()
        sums[0] += value.detach() * len(y)
        sums[1] += (logits.argmax(1) == y).sum()
        if on_batch is not None:
            on_batch(len(y))
    total, correct = sums.tolist()
    return total, correct


def _objective(net: nn.Module, loss: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The loss, and the logits without a gradient; fused to the head where net and loss allow it."""
    if isinstance(net, Sequential) and type(loss) is CrossEntropyLoss:
        fused = net.cross_entropy(x, y, loss)
        if fused is not None:
            return fused
    logits = net(x)
    return loss(logits, y), logits.detach()


@torch.no_grad()
def accuracy(net: nn.Module, data: Data, batch_size: int = 4096, dtype: torch.dtype = torch.float32) -> float:
    """The share of ``data`` that ``net`` classifies right, in [0, 1]. One read at the end.

    Raises:
        ValueError: as `fit`.
    """
    device, training = _device_of(net), net.training
    x, y = _checked(data, "data", device)
    correct = torch.zeros((), device=device, dtype=torch.int64)
    net.eval()
    try:
        for inputs, labels in batches(x, y, batch_size):
            with _precision(device, dtype):
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
        ((example, _),) = batches(x[:1], y[:1], 1)
        logits = net(example)
    finally:
        net.train(training)
    if logits.dim() != 2:
        raise ValueError(f"net: expected logits (B, classes), got {tuple(logits.shape)} for one example")
    counted = y[y != getattr(loss, "ignore_index", -100)]
    low, high = (int(counted.min()), int(counted.max())) if len(counted) else (0, 0)
    if low < 0 or high >= logits.shape[1]:
        raise ValueError(f"train: expected labels from 0 to {logits.shape[1] - 1}, got {low} to {high}")


def _precision(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[object]:
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


def _device_of(net: nn.Module) -> torch.device:
    return next((parameter.device for parameter in net.parameters()), torch.device("cpu"))


def _checked(data: Data, name: str, device: torch.device) -> tuple[Tensor, Tensor]:
    """Features and labels on ``device``; uint8 images as flat rows of pixels."""
    x, y = (data.images.flatten(1), data.labels) if isinstance(data, Images) else data
    if len(x) == 0:
        raise ValueError(f"{name}: expected at least one example, got {tuple(x.shape)}")
    if y.shape != (len(x),) or y.dtype != torch.int64:
        raise ValueError(f"{name}: expected labels ({len(x)},) torch.int64, got {tuple(y.shape)} {y.dtype}")
    if not (x.is_floating_point() or x.dtype == torch.uint8):
        raise ValueError(f"{name}: expected features that are floating or uint8, got {x.dtype}")
    return x.to(device), y.to(device)
