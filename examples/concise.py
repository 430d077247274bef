"""The book's MLP in a few lines. Source: d2l.ai, section 5.2.

python examples/concise.py
"""

from __future__ import annotations

from pathlib import Path

import torch
import typer
from torch import nn

import fastmlp
from fastmlp.data import load


def init_weights(m: nn.Module) -> None:
    """Small normal weights, as the book's."""
    if type(m) == nn.Linear:  # noqa: E721
        nn.init.normal_(m.weight, std=0.01)


def main(
    data: Path | None = None, epochs: int = 10, batch_size: int = 256, lr: float = 0.1, seed: int = 0
) -> None:
    """Train it on Fashion-MNIST."""
    train, test = load(data, print)
    torch.manual_seed(seed)
    net = fastmlp.Sequential(nn.Flatten(), nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 10))
    net.apply(init_weights)
    fastmlp.fit(
        net,
        train,
        test,
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        loss=fastmlp.CrossEntropyLoss(),
        seed=seed,
        on_epoch=print,
    )


if __name__ == "__main__":
    typer.run(main)
