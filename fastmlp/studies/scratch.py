"""The book's MLP from scratch, by tensors and autograd alone, and its concise form, in the plainest loop.

Nothing here is fastmlp's: the fused engine is compared with it. Source: d2l.ai, sections 5.2 and 4.4.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastmlp.data import Images
from fastmlp.training import Epoch, History

#: Loss and logits of a batch, after which the parameters are updated.
Step = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def from_scratch(net: nn.Sequential, lr: float) -> tuple[Step, Callable[[Tensor], Tensor]]:
    """A step and a forward of own parameters, which begin as ``net``'s: two linear layers and a ReLU."""
    W1, b1, W2, b2 = (p.detach().t().clone().requires_grad_() for p in net.parameters())

    def forward(X: Tensor) -> Tensor:
        H = torch.max(X @ W1 + b1, torch.zeros(1, device=X.device))
        return H @ W2 + b2

    def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
        logits = logits - logits.max(1, keepdim=True).values.detach()
        return (logits.exp().sum(1).log() - logits[torch.arange(len(y), device=y.device), y]).mean()

    def step(X: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        logits = forward(X)
        loss = cross_entropy(logits, y)
        loss.backward()
        with torch.no_grad():
            for parameter in (W1, b1, W2, b2):
                assert parameter.grad is not None
                parameter -= lr * parameter.grad
                parameter.grad = None
        return loss.detach(), logits.detach()

    return step, forward


def concise(net: nn.Module, lr: float) -> tuple[Step, Callable[[Tensor], Tensor]]:
    """A step and a forward of ``net`` by torch's own loss and optimizer."""
    loss, optimizer = nn.CrossEntropyLoss(), torch.optim.SGD(net.parameters(), lr=lr)

    def step(X: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        logits = net(X)
        value = loss(logits, y)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        return value.detach(), logits.detach()

    return step, net


def loop(
    step: Step,
    forward: Callable[[Tensor], Tensor],
    train: Images,
    test: Images,
    *,
    epochs: int,
    batch_size: int,
    seed: int,
) -> History:
    """Epochs in the order that `fastmlp.fit` documents for ``seed``, and a test after each."""
    x, y = train.images.flatten(1).float() / 255, train.labels
    tests = test.images.flatten(1).float() / 255
    generator = torch.Generator(y.device).manual_seed(seed)
    history = History(engine="plain loop")
    for number in range(1, epochs + 1):
        total = torch.zeros((), dtype=torch.float64, device=y.device)
        right, began = torch.zeros((), dtype=torch.int64, device=y.device), time.perf_counter()
        for rows in torch.randperm(len(y), generator=generator, device=y.device).split(batch_size):
            loss, logits = step(x[rows], y[rows])
            total += loss * len(rows)
            right += (logits.argmax(1) == y[rows]).sum()
        mean, share = total.item() / len(y), right.item() / len(y)
        seconds = time.perf_counter() - began
        with torch.no_grad():
            logits = forward(tests)
            test_loss = F.cross_entropy(logits, test.labels).item()
            tested = (logits.argmax(1) == test.labels).double().mean().item()
        history.epochs.append(
            Epoch(
                number=number,
                train_loss=mean,
                train_accuracy=share,
                test_accuracy=tested,
                seconds=seconds,
                examples_per_second=len(y) / seconds,
                test_loss=test_loss,
            )
        )
        history.seconds += seconds
    return history
