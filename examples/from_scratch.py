"""The book's MLP from scratch: own parameters, own ReLU, own model. Source: d2l.ai, section 5.2.

python examples/from_scratch.py
"""

from __future__ import annotations

from pathlib import Path

import torch
import typer
from torch import Tensor, nn

from fastmlp.data import load
from fastmlp.training import fit


def relu(x: Tensor) -> Tensor:
    """max(x, 0)."""
    return torch.max(x, torch.zeros_like(x))


class MLPScratch(nn.Module):
    """One hidden layer, by hand."""

    def __init__(self, num_inputs: int, num_outputs: int, num_hiddens: int, sigma: float = 0.01) -> None:
        super().__init__()
        self.num_inputs = num_inputs
        self.W1 = nn.Parameter(torch.randn(num_inputs, num_hiddens) * sigma)
        self.b1 = nn.Parameter(torch.zeros(num_hiddens))
        self.W2 = nn.Parameter(torch.randn(num_hiddens, num_outputs) * sigma)
        self.b2 = nn.Parameter(torch.zeros(num_outputs))

    def forward(self, X: Tensor) -> Tensor:
        """Images to logits."""
        X = X.reshape(-1, self.num_inputs)
        H = relu(X @ self.W1 + self.b1)
        return H @ self.W2 + self.b2


def main(
    data: Path | None = None, epochs: int = 10, batch_size: int = 256, lr: float = 0.1, seed: int = 0
) -> None:
    """Train it on Fashion-MNIST."""
    train, test = load(data, print)
    torch.manual_seed(seed)
    net = MLPScratch(num_inputs=784, num_outputs=10, num_hiddens=256)
    fit(net, train, test, epochs=epochs, batch_size=batch_size, lr=lr, seed=seed, on_epoch=print)


if __name__ == "__main__":
    typer.run(main)
