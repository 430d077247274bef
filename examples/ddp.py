"""Data parallel by hand: `DistributedDataParallel` around fastmlp's modules, an ordinary loop.

torchrun --nproc-per-node=2 examples/ddp.py
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
import torch.distributed as dist
import typer
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import fastmlp
from fastmlp.data import load
from fastmlp.training.distributed import leave


def main(
    data: Path | None = None, epochs: int = 3, batch_size: int = 256, lr: float = 0.1, seed: int = 0
) -> None:
    """Train the book's MLP; each process takes its share of every batch of ``batch_size``."""
    gpu = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if gpu else torch.device("cpu")
    if gpu:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if gpu else "gloo")
    rank, size = dist.get_rank(), dist.get_world_size()
    if batch_size % size:
        raise SystemExit(f"--batch-size {batch_size}: expected a multiple of {size} processes")

    train, test = (images.to(device) for images in load(data, print if rank == 0 else lambda _: None))
    torch.manual_seed(seed)  # the same start and the same order in each process
    net = fastmlp.Sequential(nn.Flatten(), nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 10)).to(device)
    model = DistributedDataParallel(net)  # averages the gradients while the backward runs
    loss = fastmlp.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)

    for epoch in range(1, epochs + 1):
        total = torch.zeros((), device=device)
        order = torch.randperm(len(train)).to(device)
        order = order[: len(order) // batch_size * batch_size]  # equal shares: a tail is dropped
        for rows in order.view(-1, size, batch_size // size)[:, rank]:
            optimizer.zero_grad()
            value = loss(model(train.images[rows] / 255), train.labels[rows])
            value.backward()
            optimizer.step()
            total += value.detach()
        dist.all_reduce(total)
        mean = total.item() / (len(order) // batch_size * size)
        if rank == 0:
            with torch.no_grad():
                right = (net(test.images / 255).argmax(1) == test.labels).float().mean().item()
            print(f"epoch {epoch:3d}  train loss {mean:.4f}  test accuracy {right:.4f}")
    dist.barrier()  # nothing is under way any more
    leave(0)  # not by the interpreter's end: gloo's threads may abort a process that is in it


if __name__ == "__main__":
    typer.run(main)
