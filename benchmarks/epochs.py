"""A whole epoch of the book's 784-256-10 at batch 256, tail included, by every peer that can train it."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

import fastmlp
from fastmlp.costs import floors
from fastmlp.data import Images, cache_directory

from . import peers
from .cases import A, Case, eager_step, name, net
from .peers import EAGER_FLOAT32, JAX, MODES, OURS, Factory, MissingPeerError, Wrap, as_is
from .timing import Run

EPOCH, PIPELINE = "epoch, data on the device", "epoch, from image files"
BATCH, LR = 256, 0.1


def cases(train: Images, device: str, data: Path | None) -> Iterator[Case]:
    """An epoch over ``train``, and one beside torchvision, which loads the files in ``data``."""
    for dtype in (torch.float32, torch.bfloat16):
        yield resident(train, dtype)
    yield _pipeline(train, data)


def _case(
    group: str,
    train: Images,
    dtype: torch.dtype,
    build: Callable[[str], dict[str, Factory]],
    widths: Sequence[int] = A,
) -> Case:
    work = floors.epoch(widths, BATCH, len(train), dtype, torch.uint8)
    return Case(group, f"{name(widths)}, batch {BATCH}, {len(train)} images", dtype, work, build, key=True)


def resident(train: Images, dtype: torch.dtype, widths: Sequence[int] = A) -> Case:
    """An epoch over images already on the device, by a net of these widths."""

    def build(device: str) -> dict[str, Factory]:
        images, labels = train.images.flatten(1).to(device), train.labels.to(device)

        def training(wrap: Wrap, dtype: torch.dtype = dtype) -> tuple[Callable[[Tensor], None], Tensor]:
            """A step on the rows of a batch, and the tensor to which it adds their losses."""
            model = net(widths).to(device)
            optimizer = torch.optim.SGD(model.parameters(), lr=LR)
            step = eager_step(model, nn.CrossEntropyLoss(), optimizer, dtype, wrap)
            total = torch.zeros((), device=device)

            def train(rows: Tensor) -> None:
                total.add_(step(images[rows].float().div_(255), labels[rows]).detach(), alpha=len(rows))

            return train, total

        def make(wrap: Wrap, dtype: torch.dtype = dtype) -> Callable[[], object]:
            return _epoch(*training(wrap, dtype), len(labels))

        def graphed() -> Run:
            train, total = training(as_is)
            return Run(_epoch(_replayed(train, len(labels), device), total, len(labels)))

        found: dict[str, Factory] = {OURS: lambda: ours(train, dtype, device, widths=widths)}
        if device == "cuda":
            for engine, peer in peers.OURS_ENGINES.items():
                found[peer] = partial(ours, train, dtype, device, engine, widths)
        found |= peers.of_torch(make, device, tuple(MODES))
        found[peers.GRAPH] = graphed
        if dtype != torch.float32:
            found[EAGER_FLOAT32] = lambda: Run(make(as_is, torch.float32))
        found[JAX] = lambda: peers.jax_peer(device).epoch(widths, images, labels, BATCH, LR, dtype)
        return found

    return _case(EPOCH, train, dtype, build, widths)


def ours(
    train: Images, dtype: torch.dtype, device: str, engine: str = "auto", widths: Sequence[int] = A
) -> Run:
    """`fastmlp.fit`'s second epoch, by its own clock: the first one may compile or capture."""
    model, resident = fastmlp.fuse(net(widths)).to(device), train.to(device)

    def call() -> float:
        history = fastmlp.fit(
            model, resident, epochs=2, batch_size=BATCH, lr=LR, device=device, dtype=dtype, engine=engine
        )
        return history.epochs[1].seconds

    return Run(call, clocked=True)


def _replayed(train: Callable[[Tensor], None], count: int, device: str) -> Callable[[Tensor], None]:
    """``train`` with one CUDA graph for the full batches and one for the short last one."""
    rows = {size: torch.arange(size, device=device) for size in {BATCH, count % BATCH or BATCH}}
    replays = {size: peers.graphed(partial(train, some), device) for size, some in rows.items()}

    def replay(chosen: Tensor) -> None:
        rows[len(chosen)].copy_(chosen)
        replays[len(chosen)]()

    return replay


def _epoch(train: Callable[[Tensor], None], total: Tensor, count: int) -> Callable[[], object]:
    """The textbook's loop over tensors on the device; the loss is read once, at the end."""

    def epoch() -> float:
        total.zero_()
        for rows in torch.randperm(count, device=total.device).split(BATCH):
            train(rows)
        return total.item()

    return epoch


def _pipeline(train: Images, data: Path | None) -> Case:
    files = (data or cache_directory()) if train.name == "Fashion-MNIST" else None

    def build(device: str) -> dict[str, Factory]:
        return {
            OURS: lambda: ours(train, torch.float32, device),
            peers.BOOK: lambda: _book(files, device, 0),
            peers.BOOK_WORKERS: lambda: _book(files, device, 4),
        }

    return dataclasses.replace(_case(PIPELINE, train, torch.float32, build), key=False)


def _book(files: Path | None, device: str, workers: int) -> Run:
    """torchvision's FashionMNIST, ToTensor, DataLoader, and the loop in eager PyTorch."""
    if files is None:
        raise MissingPeerError("needs Fashion-MNIST: --data DIR")
    from torchvision import transforms
    from torchvision.datasets import FashionMNIST

    warnings.filterwarnings("ignore", "This DataLoader will create")  # as many workers as the book has
    loader = torch.utils.data.DataLoader(
        FashionMNIST(str(files), train=True, transform=transforms.ToTensor()),
        batch_size=BATCH,
        shuffle=True,
        num_workers=workers,
        # A favour to this peer: its workers start once. (JAX's threads rule out forking.)
        persistent_workers=workers > 0,
        multiprocessing_context="spawn" if workers else None,
    )
    model = nn.Sequential(nn.Flatten(), *net(A)).to(device)
    loss, optimizer = nn.CrossEntropyLoss(), torch.optim.SGD(model.parameters(), lr=LR)
    step = eager_step(model, loss, optimizer, torch.float32, as_is)

    def epoch() -> None:
        for x, y in loader:
            step(x.to(device), y.to(device))

    return Run(epoch)
