"""``fastmlp profile``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from rich.console import Console
from typer import Option

from fastmlp.cli.common import count_of, device_of, emit, fail, memory_for, one_of, start, warn, writable
from fastmlp.cli.options import (
    ACTIVATIONS,
    AsJson,
    Device,
    Remeasure,
    Sort,
    Steps,
    names_of,
    spread,
)

if TYPE_CHECKING:
    import fastmlp
    from fastmlp.cli.workload import Workload

EXAMPLE = "Example: fastmlp profile --hidden 512,256 --dtype bfloat16 --steps 50 --trace trace.json"


@spread
def profile(
    options: Steps,
    warmup: Annotated[
        int, Option(metavar="N", min=1, help="Epochs to run first: the first one compiles.")
    ] = 1,
    device: Device = "",
    sort: Annotated[
        Sort, Option(metavar="NAME", help=f"By {names_of(Sort)}; loss is the time above the floor.")
    ] = Sort.time,
    limit: Annotated[int, Option(metavar="N", min=1, help="Rows to show; the rest are summed.")] = 15,
    trace: Annotated[Path | None, Option(metavar="FILE", help="Write a trace, for ui.perfetto.dev.")] = None,
    memory: Annotated[
        Path | None,
        Option(
            metavar="FILE",
            help="Write a GPU's snapshot, for pytorch.org/memory_viz, or a CPU's allocations as JSON.",
        ),
    ] = None,
    remeasure: Remeasure = False,
    ranges: Annotated[
        bool,
        Option("--ranges", help="No table: only run, with the layers' ranges, under nsys, ncu or proton."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Where a step's time goes: every kernel beside what the device can do.

    By default a training step of the book's 784-256-10. For each kernel in each layer: time, launches, bytes
    and operations counted from its arguments, these as shares of what a large copy and a large matrix product
    reach on this device, and the floor, the least time that they allow. An empty cell is not known.

    docs/profiling.md goes on from here to the trace, Nsight and proton.
    """
    console = start(as_json)
    from fastmlp.cli import workload
    from fastmlp.costs.ceilings import ceilings_of
    from fastmlp.profiling import profile as profiler

    one_of(ACTIVATIONS, options.activation, "--activation")
    if ranges and (trace or memory or as_json):
        fail("--ranges: expected no --trace, --memory or --json, of which there is nothing then", 2)
    for path, option in ((trace, "--trace"), (memory, "--memory")):
        if path is not None:
            writable(path, option)
    where = device_of(device)
    with memory_for(f"--hidden {options.hidden}"):
        net = workload.net_of(options, where)
    with (
        workload.on(where),
        memory_for(f"--batch-size {options.batch_size}, --steps {options.steps}"),
    ):
        work = workload.steps_of(options, net)
        ceilings = None if ranges else ceilings_of(where, again=remeasure)
        prof = profiler(net.model, trace=trace, memory=memory, kernels=not ranges, ceilings=ceilings)
        with prof.warm_up():
            for _ in range(warmup):
                work.run()
        if ranges:
            return work.run_for_another_profiler(prof)
        seconds = work.seconds()
        with prof:
            work.run()
    found = _found(options, work, prof, seconds) | {
        "trace": trace and str(trace),
        "memory": memory and str(memory),
    }
    if as_json:
        emit(found | prof.to_json())
    else:
        _say(console, found, prof, sort.value, limit)


def _found(options: Steps, work: Workload, prof: fastmlp.profile, seconds: float) -> dict[str, Any]:
    """What was run, and what a step's time is made of.

    A GPU's kernels take as long with the profiler as without, and the host longer: what is left of the time
    without it is the host's. On a CPU all takes longer together.
    """
    from fastmlp.costs import plans
    from fastmlp.costs.ceilings import device_name

    profiled, kernels = prof.seconds / work.steps, prof.busy / work.steps
    host = max(0.0, (seconds if work.device.type == "cuda" else profiled) - kernels)
    floor = prof.floor / work.steps
    return {
        "net": plans.name(work.net.widths),
        "work": "inference" if options.inference else "training step",
        "batch_size": options.batch_size,
        "dtype": options.dtype.value,
        "engine": work.engine,
        "device": device_name(work.device),
        "steps": work.steps,
        "step": {
            "seconds": seconds, "profiled": profiled, "kernels": kernels, "host": host, "floor": floor
        },
    }  # fmt: skip


def _say(console: Console, found: dict[str, Any], prof: fastmlp.profile, sort: str, limit: int) -> None:
    """The table, what a step's time is made of, and where the files are opened."""
    import torch

    from fastmlp.cli.workload import say_ceilings
    from fastmlp.profiling.rows import duration, percent, text

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
    if found["memory"]:
        how = (
            "open it in https://pytorch.org/memory_viz"
            if torch.cuda.is_available()
            else "JSON, every allocation with its op and layer"
        )
        console.print(f"memory: {found['memory']}; {how}")
