"""The two interfaces of the engine, what runs a step and what runs an epoch of them; and their job."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Job(NamedTuple):
    """What is to be trained, how, and on what."""

    model: nn.Module
    loss: nn.Module
    optimizer: torch.optim.Optimizer
    x: Tensor
    y: Tensor
    batch: int
    generator: torch.Generator
    dtype: torch.dtype


class Executor(ABC):
    """Runs the steps of one network with one loss and one optimizer."""

    #: What ran, as `fit` reports it.
    name: str
    #: (2,) float64 on the device: Σ loss * rows and Σ right answers over the steps since it was zeroed. With
    #: floating targets no answer is right.
    sums: Tensor
    #: Whether a step was interrupted while it wrote to parameters or optimizer state.
    updating = False

    @abstractmethod
    def step(self, x: Tensor, y: Tensor, rows: Tensor | None = None, *, count: bool = True) -> Tensor:
        """One step: forward, backward, update. Nothing waits for the device.

        Args:
            x: features (N, ...); uint8 stands for x / 255, unless the model has a `Dequantize`.
            y: class indices (N,) int64, or for a squared error targets (N, outputs) float32.
            rows: which rows of x and y are the batch, (B,) int64 on the device; None for all.
            count: whether to add to `sums`, where that costs something.

        Returns:
            The loss before the update, a scalar of its own without a gradient.
        """

    def holds(self) -> bool:
        """Whether optimizer and parameters are certainly still those that this can run steps of."""
        return False

    def state(self) -> dict[str, Any]:
        """What the next step reads besides data, parameters, buffers and optimizer state."""
        return {"sums": self.sums}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave."""
        self.sums.copy_(state["sums"])


class Loop(ABC):
    """Runs epochs over a data set that lives on the device."""

    #: What ran, as `fit` reports it.
    name: str
    executor: Executor
    #: Of the batch order.
    generator: torch.Generator
    #: How many steps of an epoch are done, where the host is between two of them; 0 between epochs.
    done: int = 0

    @abstractmethod
    def epoch(self, factors: Tensor, on_batch: Callable[[int], None] | None = None) -> tuple[float, float]:
        """One pass over the data in a fresh order, or what `load_state` left of one.

        Args:
            factors: (steps,) float64 on the CPU, what each step's learning rates are multiplied by.
            on_batch: called with the number of examples whenever the host is between steps.

        Returns:
            Σ loss * rows and the number of right answers, read from the device once.
        """

    def state(self) -> dict[str, Any]:
        """All that a continuation needs besides model, loss, optimizer and torch's own generators."""
        return {"done": self.done, "order": self.generator.get_state(), "executor": self.executor.state()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave, to the bit."""
        self.done = state["done"]
        self.generator.set_state(state["order"])
        self.executor.load_state(state["executor"])
