"""``fastmlp profile``."""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Any

import torch
import typer
from torch import nn

import fastmlp
from fastmlp import activations, plans
from fastmlp.cli.common import Dtype, console, device_of, errors, fail, widths_of
from fastmlp.cli.train import Engine
from fastmlp.cli.train import _net as build
from fastmlp.engine import choose
from fastmlp.engine.autograd import precision
from fastmlp.profiling.ceilings import ceilings, device_name
from fastmlp.profiling.rows import SORTS, duration, percent, text
from fastmlp.training import load, load_into

EXAMPLE = "Example: fastmlp profile --hidden 512,256 --dtype bfloat16 --steps 50 --trace trace.json"
_UNPROFILED = 0.5  # seconds that the steps are timed without the profiler


class Optimizer(str, Enum):
    """torch's optimizers."""

    sgd = "sgd"
    momentum = "momentum"
    adam = "adam"
    adamw = "adamw"


_OPTIMIZERS: dict[Optimizer, Callable[[nn.Module], torch.optim.Optimizer]] = {
    Optimizer.sgd: lambda net: torch.optim.SGD(net.parameters(), lr=0.1),
    Optimizer.momentum: lambda net: torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9),
    Optimizer.adam: lambda net: torch.optim.Adam(net.parameters()),
    Optimizer.adamw: lambda net: torch.optim.AdamW(net.parameters()),
}
Sort = Enum("Sort", {name: name for name in SORTS}, type=str)  # type: ignore[misc]


def profile(
    net: Path | None = typer.Argument(None, help="A net that train saved; default: one as --hidden says."),
    hidden: str = typer.Option("256", help="Widths of the hidden layers, such as 512,256; empty for none."),
    activation: str = typer.Option("relu", help="One of " + ", ".join(activations.NAMES) + "."),
    batch_size: int = typer.Option(256, min=1, help="Examples a step."),
    dtype: Dtype = typer.Option(Dtype.float32, help="Of the matrix products; parameters stay float32."),
    engine: Engine = typer.Option(Engine.auto, help="What runs the steps; see train."),
    optimizer: Optimizer = typer.Option(Optimizer.sgd, help="With torch's own defaults; SGD at 0.1."),
    inference: bool = typer.Option(False, "--inference", help="The forward alone."),
    steps: int = typer.Option(20, min=1, help="That are profiled: an epoch of so many batches."),
    warmup: int = typer.Option(1, min=1, help="Epochs before it: the first one compiles."),
    device: str = typer.Option("", help="cpu, cuda, cuda:1; default: the GPU if there is one."),
    sort: Sort = typer.Option("time", help="By what; loss is the time above the floor."),
    limit: int = typer.Option(15, min=1, help="Rows that are shown; the others are summed."),
    trace: Path | None = typer.Option(None, help="Where the trace goes, for ui.perfetto.dev."),
    memory: Path | None = typer.Option(
        None, help="Where the allocator's snapshot goes, for pytorch.org/memory_viz; on a CPU its allocations."
    ),
    measure: bool = typer.Option(False, "--measure", help="Measure the device's ceilings again, and keep the best."),
    ranges: bool = typer.Option(
        False, "--ranges", help="No table: only run, in the layers' ranges, for nsys, ncu or proton around it."
    ),
    as_json: bool = typer.Option(False, "--json", help="One JSON object on stdout, and nothing else."),
) -> None:
    """Where a step's time goes: every kernel beside what the device can do.

    By default a training step of the book's 784-256-10. For each kernel in each layer: time, launches, bytes and
    operations counted from its arguments, these as shares of what a large copy and a large matrix product reach
    on this device, and the floor, the least time that they allow. A cell that is empty is not known.

    docs/profiling.md goes on from here to the trace, Nsight and proton.
    """
    if not torch.cuda.is_available():
        os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # else it reports that it found no GPU
    if activation not in activations.NAMES:
        fail(f"--activation {activation}: expected one of {', '.join(activations.NAMES)}", 2)
    if ranges and (trace or memory or as_json):
        fail("--ranges: expected no --trace, --memory or --json, of which there is nothing then", 2)
    where = device_of(device)
    console.stderr = as_json
    model, widths, classes = _model(net, hidden, activation)
    torch.manual_seed(0)
    kind = getattr(torch, dtype.value)
    try:
        with torch.cuda.device(where if where.type == "cuda" else -1):
            run, ran = _workload(model.to(where), widths, classes, batch_size, steps, kind, engine, optimizer, inference)
            prof = fastmlp.profile(
                model, trace=trace, memory=memory, kernels=not ranges,
                ceilings=None if ranges else ceilings(where, again=measure),
            )  # fmt: skip
            with prof.warm_up():
                for _ in range(warmup):
                    run()
            if ranges:
                _only_run(prof, run)
                return
            seconds = _time(run, where) / steps
            with prof:
                run()
    except ValueError as error:  # an engine that cannot run here
        fail(str(error), 2)
    except OSError as error:
        fail(f"{error.filename or trace or memory}: {error.strerror or error}")
    found = {
        "net": plans.name(widths),
        "batch_size": batch_size,
        "dtype": dtype.value,
        "device": device_name(where),
        "work": "inference" if inference else "training step",
        "engine": ran,
        "steps": steps,
        "step": {
            "seconds": seconds,
            "kernels": prof.busy / steps,
            "host": max(0.0, seconds - prof.busy / steps),
            "floor": prof.floor / steps,
        },
        "trace": trace and str(trace),
        "memory": memory and str(memory),
    }
    if as_json:
        print(json.dumps(found | prof.to_json()))
        return
    _say(found, prof, sort.value, limit)


def _model(path: Path | None, hidden: str, activation: str) -> tuple[nn.Module, list[int], int]:
    """The net, its widths, and how many classes it has; 0 for a regression."""
    if path is None:
        widths = [784, *widths_of(hidden), 10]
        return build(widths, activation), widths, 10
    try:
        _, about = load(path)
        net = build(about["widths"], about["activation"])
        load_into(net, path)
    except OSError as error:
        fail(f"{path}: {error.strerror or error}")
    except KeyError as error:
        fail(f"{path}: expected a net that fastmlp train saved, found one without {error}")
    except ValueError as error:
        fail(str(error))
    return net, about["widths"], len(about.get("classes", []))


def _workload(
    net: nn.Module,
    widths: list[int],
    classes: int,
    batch: int,
    steps: int,
    dtype: torch.dtype,
    engine: Engine,
    optimizer: Optimizer,
    inference: bool,
) -> tuple[Callable[[], object], str]:
    """What is profiled, as a function, and what runs it. Random data of the right shapes, on the device."""
    where = next(net.parameters()).device
    count = batch * (1 if inference else steps)
    if inference:
        x = torch.rand(count, widths[0], device=where)
        net.eval()

        def infer() -> None:
            with torch.inference_mode(), precision(where, dtype):
                for _ in range(steps):
                    net(x)

        return infer, "modules"
    x = torch.randint(256, (count, widths[0]), dtype=torch.uint8, device=where)
    loss: nn.Module = fastmlp.CrossEntropyLoss()
    y = torch.randint(classes or 1, (count,), device=where)
    if not classes:
        loss, y = nn.MSELoss(), torch.rand(count, widths[-1], device=where)
    generator = torch.Generator(where).manual_seed(0)
    job = choose.Job(net, loss, _OPTIMIZERS[optimizer](net), x, y, batch, generator, dtype)
    loop = choose.loop(engine.value, job)
    factors = torch.full((steps,), 1e-3, dtype=torch.float64)  # of random data nothing is to be learned
    return lambda: loop.epoch(factors), loop.name


def _only_run(prof: fastmlp.profile, run: Callable[[], object]) -> None:
    """For a profiler around this process, which may wait for ``cudaProfilerStart``."""
    gpu = torch.cuda.is_available()
    with prof:
        if gpu:
            torch.cuda.profiler.start()
        run()
        if gpu:
            torch.cuda.synchronize()
            torch.cuda.profiler.stop()


def _time(run: Callable[[], object], device: torch.device) -> float:
    """Seconds of a run with nobody looking: the median."""
    times: list[float] = []
    while len(times) < 3 or (sum(times) < _UNPROFILED and len(times) < 50):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
        if sum(times) > 10 * _UNPROFILED:
            break
    return statistics.median(times)


def _say(found: dict[str, Any], prof: fastmlp.profile, sort: str, limit: int) -> None:
    """The table, what a step's time is made of, and where the files are opened."""
    console.print(
        f"{found['net']}, {found['work']}, batch {found['batch_size']}, {found['dtype']}, engine {found['engine']}: "
        f"{found['steps']} steps on {found['device']}",
        style="bold",
    )
    console.print()
    if console.is_terminal:
        console.print(prof.table(sort, limit, console.width))
    else:
        console.print(text(prof.rows, sort, limit))
    console.print()
    step = found["step"]
    seconds = step["seconds"]
    console.print(
        f"a step: {duration(seconds)} without the profiler. Its kernels take {duration(step['kernels'])}; the host "
        f"{duration(step['host'])} ({percent(step['host'] / seconds)}). Floor of what is counted: "
        f"{duration(step['floor'])} ({percent(step['floor'] / seconds)} of the time)."
    )
    if any((share or 0) > 1.05 for row in prof.rows for share in (row.bandwidth, row.peak)):
        errors.print(
            "a share above 100%: this machine was busier when its ceilings were measured; --measure does it again",
            style="yellow",
        )
    if found["trace"]:
        console.print(f"trace: {found['trace']}; open it in https://ui.perfetto.dev or chrome://tracing")
    if found["memory"] and torch.cuda.is_available():
        console.print(f"memory: {found['memory']}; open it in https://pytorch.org/memory_viz")
    elif found["memory"]:
        console.print(f"memory: {found['memory']}; JSON, every allocation with its op and layer")
