"""What `profile` and `plot roofline` run: steps of a net on random data of the right shapes."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from rich.console import Console
from torch import nn

import fastmlp
from fastmlp.cli import nets, optimizers
from fastmlp.cli.common import by_option, fail, widths_of
from fastmlp.cli.options import Settings
from fastmlp.cli.profile import Steps
from fastmlp.costs.ceilings import Ceilings
from fastmlp.engine import choose
from fastmlp.engine.autograd import precision

_TIMED = 0.5  # seconds that `seconds` takes at the least


def on(device: torch.device) -> AbstractContextManager[None]:
    """A profile of what runs there: its launches go to that GPU, if it is one."""
    if not torch.cuda.is_available():
        os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # else it reports that it found no GPU
    return torch.cuda.device(device if device.type == "cuda" else -1)


def say_ceilings(console: Console, ceilings: Ceilings) -> None:
    """When they were measured and how busy the machine was; in yellow where it was too busy."""
    console.print(
        f"{ceilings.said}; --remeasure does it again", style="yellow" if ceilings.doubtful else "dim"
    )


class Net(NamedTuple):
    """A net on its device."""

    model: nn.Module
    widths: list[int]  # of its input and layers
    classes: bool  # whether it classifies; else it fits numbers


def net_of(options: Steps, device: torch.device) -> Net:
    """The net of a file, or one that is made."""
    torch.manual_seed(0)
    if options.net is not None:
        net, about = nets.opened(options.net, device)
        return Net(net, about["widths"], bool(about["classes"]))
    widths = [784, *widths_of(options.hidden), 10]
    return Net(nets.build(widths, options.activation).to(device), widths, True)


@dataclass(frozen=True)
class Workload:
    """So many steps, run by a call."""

    run: Callable[[], object]
    steps: int
    engine: str
    net: Net
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

    def run_for_another_profiler(self, ranges: fastmlp.profile) -> None:
        """In ``ranges``, for a profiler around this process, which may wait for ``cudaProfilerStart``."""
        gpu = self.device.type == "cuda"
        with ranges:
            if gpu:
                torch.cuda.profiler.start()
            self.run()
            if gpu:
                torch.cuda.synchronize()
                torch.cuda.profiler.stop()

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def steps_of(options: Steps, net: Net) -> Workload:
    """What ``options`` say, of ``net``; an engine that cannot run it is said."""
    if options.inference:
        return inference(options, net)
    try:
        return training(options, net)
    except ValueError as error:
        fail(by_option(str(error), ("engine",)), 2)


def inference(options: Steps, net: Net) -> Workload:
    """The forward in eval mode, on one batch."""
    device, dtype = next(net.model.parameters()).device, getattr(torch, options.dtype.value)
    x = torch.rand(options.batch_size, net.widths[0], device=device)
    net.model.eval()

    def run() -> None:
        with torch.inference_mode(), precision(device, dtype):
            for _ in range(options.steps):
                net.model(x)

    return Workload(run, options.steps, "modules", net, device)


def training(options: Steps, net: Net) -> Workload:
    """An epoch of batches, as `fastmlp.fit` runs it: rows of a data set on the device.

    Raises:
        ValueError: the engine cannot run this here.
    """
    device, count = next(net.model.parameters()).device, options.batch_size * options.steps
    features, outputs = net.widths[0], net.widths[-1]
    loss: nn.Module = fastmlp.CrossEntropyLoss()
    x = torch.randint(256, (count, features), dtype=torch.uint8, device=device)
    y = torch.randint(outputs, (count,), device=device)
    if not net.classes:
        loss, x, y = nn.MSELoss(), x.float() / 255, torch.rand(count, outputs, device=device)
    made = optimizers.make(optimizers.resolved(Settings(optimizer=options.optimizer)), net.model.train())
    generator, dtype = torch.Generator(device).manual_seed(0), getattr(torch, options.dtype.value)
    job = choose.Job(net.model, loss, made, x, y, options.batch_size, generator, dtype)
    loop = choose.loop(options.engine.value, job)
    # Of random data nothing is to be learned.
    factors = torch.full((options.steps,), 1e-3, dtype=torch.float64, device="cpu")
    return Workload(lambda: loop.epoch(factors), options.steps, loop.name, net, device)
