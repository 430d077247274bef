"""What `profile` and `plot roofline` run, on random data of the right shapes."""

from __future__ import annotations

import os
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from rich.console import Console
from torch import nn

import fastmlp
from fastmlp.cli import nets, optimizers
from fastmlp.cli.common import by_option, fail, widths_of
from fastmlp.cli.options import Dtype, Engine, Settings, Steps
from fastmlp.costs import floors, plans
from fastmlp.costs.ceilings import Ceilings, device_name
from fastmlp.engine import choose
from fastmlp.engine.autograd import precision
from fastmlp.profiling.points import Point
from fastmlp.profiling.trace import Kernel

_TIMED = 0.5  # the least time that `seconds` takes
#: Widths and batch of the nets whose training steps are profiled.
NETS = (((784, 256, 10), 256), ((784, 1024, 1024, 10), 1024))
#: Logits whose cross-entropy is.
LOGITS = (4096, 1000)
#: An exponential, a subtraction and two more an element, forward and backward: no products to count.
_OPERATIONS = 8
_STEPS = 10  # of each
#: What each kernel is, of ours and of those that take their place on a CPU.
_KINDS = {
    "linear_act_kernel": "forward",
    "mkldnn::_linear_pointwise": "forward",
    "aten::addmm": "forward",
    "head_kernel": "head",
    "linear_backward_kernel": "backward",
    "aten::mm": "backward",
    "update_kernel": "backward with update",
    "aten::addmm_": "backward with update",
}


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
    device, dtype = next(net.model.parameters()).device, options.dtype.torch
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
    generator, dtype = torch.Generator(device).manual_seed(0), options.dtype.torch
    job = choose.Job(net.model, loss, made, x, y, options.batch_size, generator, dtype)
    loop = choose.loop(options.engine.value, job)
    # Of random data nothing is to be learned.
    factors = torch.full((options.steps,), 1e-3, dtype=torch.float64, device="cpu")
    return Workload(lambda: loop.epoch(factors), options.steps, loop.name, net, device)


def roofline_note(where: torch.device, ceilings: Ceilings) -> str:
    """What `roofline` measured, and when."""
    run = " and ".join(f"{plans.name(widths)} (batch {batch})" for widths, batch in NETS)
    return (
        f"{device_name(where)}, torch {torch.__version__}; {ceilings.said}. Layers of {run}; medians. "
        f"Of a cross-entropy {_OPERATIONS} operations an element count."
    )


def roofline(where: torch.device, ceilings: Ceilings) -> Iterator[Point]:
    """Kernels, in both dtypes: those of training steps of `NETS`, and a cross-entropy's."""
    for dtype in (Dtype.float32, Dtype.bfloat16):
        for widths, batch in NETS:
            yield from _step(where, list(widths), batch, dtype, ceilings)
        yield _cross_entropy(where, dtype.torch, ceilings)


def _step(
    where: torch.device, widths: list[int], batch: int, dtype: Dtype, ceilings: Ceilings
) -> Iterator[Point]:
    """The kernels of a training step that have products."""
    net = nets.build(widths, "relu").to(where)
    options = Steps(batch_size=batch, dtype=dtype, engine=Engine.fused, steps=_STEPS)
    work = training(options, Net(net, widths, True))
    prof = fastmlp.profile(net, ceilings=ceilings)
    work.run()
    with prof:
        work.run()
    shapes = {
        name: f"{module.in_features}→{module.out_features}"
        for name, module in net.named_modules()
        if isinstance(module, nn.Linear)
    }
    groups: dict[tuple[str, str, int, str], list[Kernel]] = defaultdict(list)
    for kernel in prof.found.kernels:
        if kernel.name in _KINDS and kernel.work is not None and kernel.work.operations:
            shape = shapes.get(kernel.layer, plans.name(widths))  # an update is of all layers
            groups[_KINDS[kernel.name], shape, kernel.work.operations, kernel.dtype].append(kernel)
    for (kind, shape, operations, of), kernels in groups.items():
        seconds = statistics.median(kernel.seconds for kernel in kernels)
        yield Point(shape, kind, operations, _bytes(kernels), seconds, of)


def _bytes(kernels: list[Kernel]) -> float:
    return statistics.mean(kernel.work.bytes for kernel in kernels if kernel.work is not None)


def _cross_entropy(where: torch.device, dtype: torch.dtype, ceilings: Ceilings) -> Point:
    rows, classes = LOGITS
    logits = torch.randn(rows, classes, device=where, dtype=dtype, requires_grad=True)
    target = torch.randint(classes, (rows,), device=where)
    loss = fastmlp.CrossEntropyLoss()
    seconds = []
    for _ in range(_STEPS):
        with fastmlp.profile(ceilings=ceilings) as prof:
            loss(logits, target).backward()
        seconds.append(prof.busy)
    moved = floors.cross_entropy(rows, classes, dtype).bytes
    of = str(dtype).removeprefix("torch.")
    label = f"{rows} x {classes}"
    return Point(label, "cross-entropy", _OPERATIONS * rows * classes, moved, statistics.median(seconds), of)
