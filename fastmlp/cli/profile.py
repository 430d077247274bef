"""``fastmlp profile``."""

from __future__ import annotations

import os
from enum import Enum
from pathlib import Path
from typing import Any

import torch
import typer
from rich.console import Console
from torch import nn

import fastmlp
from fastmlp import activations
from fastmlp.cli import nets, workload
from fastmlp.cli.common import (
    DEVICE_HELP,
    JSON_HELP,
    NET_HELP,
    Dtype,
    by_option,
    count_of,
    device_of,
    emit,
    fail,
    memory_for,
    names_of,
    one_of,
    start,
    warn,
    widths_of,
    writable,
)
from fastmlp.cli.options import Engine, Optimizer
from fastmlp.cli.workload import Workload, say_ceilings
from fastmlp.costs import plans
from fastmlp.costs.ceilings import ceilings_of, device_name
from fastmlp.profiling.rows import SORTS, duration, percent, text

EXAMPLE = "Example: fastmlp profile --hidden 512,256 --dtype bfloat16 --steps 50 --trace trace.json"
Sort = Enum("Sort", {name: name for name in SORTS}, type=str)  # type: ignore[misc]
_SORTS = ", ".join(SORTS)
_DTYPES, _ENGINES, _OPTIMIZERS = names_of(Dtype), names_of(Engine), names_of(Optimizer)


def profile(
    net: Path | None = typer.Argument(None, metavar="NET", help=NET_HELP + " Default: as --hidden says."),
    hidden: str = typer.Option("256", metavar="WIDTHS", help="Of the hidden layers of 784-...-10."),
    activation: str = typer.Option("relu", metavar="NAME", help=f"One of {', '.join(activations.NAMES)}."),
    batch_size: int = typer.Option(256, metavar="N", min=1, help="Examples a step."),
    dtype: Dtype = typer.Option(Dtype.float32, metavar="NAME", help=f"Of the products: {_DTYPES}."),
    engine: Engine = typer.Option(Engine.auto, metavar="NAME", help=f"What runs it: {_ENGINES}."),
    optimizer: Optimizer = typer.Option(
        Optimizer.sgd, metavar="NAME", help=f"One of {_OPTIMIZERS}, with train's numbers."
    ),
    inference: bool = typer.Option(False, "--inference", help="The forward alone."),
    steps: int = typer.Option(
        20, metavar="N", min=1, help="How many to profile: an epoch of that many batches."
    ),
    warmup: int = typer.Option(1, metavar="N", min=1, help="Epochs to run before: the first one compiles."),
    device: str = typer.Option("", metavar="NAME", help=DEVICE_HELP),
    sort: Sort = typer.Option("time", metavar="NAME", help=f"By {_SORTS}; loss is the time above the floor."),
    limit: int = typer.Option(15, metavar="N", min=1, help="Rows to show; the others are summed."),
    trace: Path | None = typer.Option(None, metavar="FILE", help="A trace, for ui.perfetto.dev."),
    memory: Path | None = typer.Option(
        None,
        metavar="FILE",
        help="A GPU's snapshot, for pytorch.org/memory_viz; a CPU's allocations as JSON.",
    ),
    remeasure: bool = typer.Option(
        False, "--remeasure", help="Measure again what the device reaches, and keep the best."
    ),
    ranges: bool = typer.Option(
        False,
        "--ranges",
        help="No table: only run, in the layers' ranges, for nsys, ncu or proton around it.",
    ),
    as_json: bool = typer.Option(False, "--json", help=JSON_HELP),
) -> None:
    """Where a step's time goes: every kernel beside what the device can do.

    By default a training step of the book's 784-256-10. For each kernel in each layer: time, launches, bytes
    and operations counted from its arguments, these as shares of what a large copy and a large matrix product
    reach on this device, and the floor, the least time that they allow. An empty cell is not known.

    docs/profiling.md goes on from here to the trace, Nsight and proton.
    """
    console = start(as_json)
    if not torch.cuda.is_available():
        os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # else it reports that it found no GPU
    one_of(activations.NAMES, activation, "--activation")
    if ranges and (trace or memory or as_json):
        fail("--ranges: expected no --trace, --memory or --json, of which there is nothing then", 2)
    for path, option in ((trace, "--trace"), (memory, "--memory")):
        if path is not None:
            writable(path, option)
    where = device_of(device)
    torch.manual_seed(0)
    with memory_for(f"--hidden {hidden}"):
        model, widths, classes = _model(net, hidden, activation, where)
    kind = getattr(torch, dtype.value)
    on_device = torch.cuda.device(where if where.type == "cuda" else -1)
    with on_device, memory_for(f"--batch-size {batch_size}, --steps {steps}"):
        try:
            work = (
                workload.inference(model, widths[0], batch_size, steps, kind)
                if inference
                else workload.training(model, widths, classes, batch_size, steps, kind, engine, optimizer)
            )
        except ValueError as error:  # an engine that cannot run here
            fail(by_option(str(error), ("engine",)), 2)
        prof = fastmlp.profile(
            model,
            trace=trace,
            memory=memory,
            kernels=not ranges,
            ceilings=None if ranges else ceilings_of(where, again=remeasure),
        )
        with prof.warm_up():
            for _ in range(warmup):
                work.run()
        if ranges:
            _only_run(prof, work)
            return
        seconds = work.seconds()
        with prof:
            work.run()
    found = {
        "net": plans.name(widths),
        "work": "inference" if inference else "training step",
        "batch_size": batch_size,
        "dtype": dtype.value,
        "engine": work.engine,
        "device": device_name(where),
        "steps": steps,
        "step": _step(prof, work, seconds),
        "trace": trace and str(trace),
        "memory": memory and str(memory),
    }
    if as_json:
        emit(found | prof.to_json())
    else:
        _say(console, found, prof, sort.value, limit)


def _model(
    path: Path | None, hidden: str, activation: str, where: torch.device
) -> tuple[nn.Module, list[int], bool]:
    """The net, its widths, and whether it classifies."""
    if path is not None:
        net, about = nets.opened(path, where)
        return net, about["widths"], bool(about["classes"])
    widths = [784, *widths_of(hidden), 10]
    return nets.build(widths, activation).to(where), widths, True


def _only_run(prof: fastmlp.profile, work: Workload) -> None:
    """For a profiler around this process, which may wait for ``cudaProfilerStart``."""
    gpu = work.device.type == "cuda"
    with prof:
        if gpu:
            torch.cuda.profiler.start()
        work.run()
        if gpu:
            torch.cuda.synchronize()
            torch.cuda.profiler.stop()


def _step(prof: fastmlp.profile, work: Workload, seconds: float) -> dict[str, float]:
    """What a step's time is made of.

    A GPU's kernels take as long with the profiler as without, and the host longer: what is left of the time
    without it is the host's. On a CPU all takes longer together.
    """
    profiled, kernels = prof.seconds / work.steps, prof.busy / work.steps
    host = max(0.0, (seconds if work.device.type == "cuda" else profiled) - kernels)
    floor = prof.floor / work.steps
    return {"seconds": seconds, "profiled": profiled, "kernels": kernels, "host": host, "floor": floor}


def _say(console: Console, found: dict[str, Any], prof: fastmlp.profile, sort: str, limit: int) -> None:
    """The table, what a step's time is made of, and where the files are opened."""
    console.print(
        f"{found['net']}, {found['work']}, batch {found['batch_size']}, {found['dtype']}, "
        f"engine {found['engine']}: {count_of(found['steps'], 'step')} on {found['device']}",
        style="bold",
    )
    console.print()
    if console.is_terminal:
        console.print(prof.table(sort, limit, console.width))
    else:
        console.print(text(prof.rows, sort, limit))
    console.print()
    step = found["step"]
    whole = step["kernels"] + step["host"]
    console.print(
        f"a step takes {duration(step['seconds'])}, in the profile {duration(step['profiled'])}: kernels "
        f"{duration(step['kernels'])}, the host {duration(step['host'])} ({percent(step['host'] / whole)}). "
        f"Floor of what is counted: {duration(step['floor'])} ({percent(step['floor'] / whole)})."
    )
    if any((share or 0) > 1.05 for row in prof.rows for share in (row.bandwidth, row.peak)):
        warn("a share above 100%: the machine was busy as its ceilings were measured; see --remeasure")
    say_ceilings(console, prof.ceilings)
    if found["trace"]:
        console.print(f"trace: {found['trace']}; open it in https://ui.perfetto.dev or chrome://tracing")
    if found["memory"] and torch.cuda.is_available():
        console.print(f"memory: {found['memory']}; open it in https://pytorch.org/memory_viz")
    elif found["memory"]:
        console.print(f"memory: {found['memory']}; JSON, every allocation with its op and layer")
