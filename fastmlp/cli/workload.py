"""What `profile` and `plot roofline` run: steps of a net on random data of the right shapes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from rich.console import Console
from torch import nn

import fastmlp
from fastmlp.cli import optimizers
from fastmlp.cli.options import Engine, Optimizer, Settings
from fastmlp.costs.ceilings import Ceilings
from fastmlp.engine import choose
from fastmlp.engine.autograd import precision

_TIMED = 0.5  # seconds that `seconds` takes at the least


def say_ceilings(console: Console, ceilings: Ceilings) -> None:
    """When they were measured and how busy the machine was; in yellow where it was too busy."""
    console.print(
        f"{ceilings.said}; --remeasure does it again", style="yellow" if ceilings.doubtful else "dim"
    )


@dataclass(frozen=True)
class Workload:
    """So many steps, run by a call."""

    run: Callable[[], object]
    steps: int
    engine: str
    device: torch.device

    def seconds(self) -> float:
        """Of a step with nobody looking: the median."""
        times: list[float] = []
        while len(times) < 3 or (sum(times) < _TIMED and len(times) < 50):
            self._wait()
            start = time.perf_counter()
            self.run()
            self._wait()
            times.append(time.perf_counter() - start)
            if sum(times) > 10 * _TIMED:
                break
        return statistics.median(times) / self.steps

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def inference(net: nn.Module, features: int, batch: int, steps: int, dtype: torch.dtype) -> Workload:
    """The forward in eval mode, ``steps`` times on one batch."""
    where = next(net.parameters()).device
    x = torch.rand(batch, features, device=where)
    net.eval()

    def run() -> None:
        with torch.inference_mode(), precision(where, dtype):
            for _ in range(steps):
                net(x)

    return Workload(run, steps, "modules", where)


def training(
    net: nn.Module,
    widths: list[int],
    classes: bool,
    batch: int,
    steps: int,
    dtype: torch.dtype,
    engine: Engine = Engine.auto,
    optimizer: Optimizer = Optimizer.sgd,
) -> Workload:
    """An epoch of ``steps`` batches, as `fastmlp.fit` runs it: rows of a data set on the device.

    Args:
        net: on its device.
        widths: of its input and layers.
        classes: whether it classifies; else it fits numbers.
        batch: rows.
        steps: batches.
        dtype: of the products.
        engine: what runs it.
        optimizer: with the command line's numbers for it.

    Raises:
        ValueError: the engine cannot run this here.
    """
    where, count = next(net.parameters()).device, batch * steps
    loss: nn.Module = fastmlp.CrossEntropyLoss()
    x = torch.randint(256, (count, widths[0]), dtype=torch.uint8, device=where)
    y = torch.randint(widths[-1], (count,), device=where)
    if not classes:
        loss, x, y = nn.MSELoss(), x.float() / 255, torch.rand(count, widths[-1], device=where)
    made = optimizers.make(optimizers.resolved(Settings(optimizer=optimizer)), net.train())
    generator = torch.Generator(where).manual_seed(0)
    loop = choose.loop(engine.value, choose.Job(net, loss, made, x, y, batch, generator, dtype))
    factors = torch.full(
        (steps,), 1e-3, dtype=torch.float64, device="cpu"
    )  # of random data nothing is to be learned
    return Workload(lambda: loop.epoch(factors), steps, loop.name, where)
