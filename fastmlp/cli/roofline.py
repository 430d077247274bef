"""``fastmlp plot roofline``."""

from __future__ import annotations

import os
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
import typer
from torch import nn

import fastmlp
from fastmlp.cli import nets, workload
from fastmlp.cli.common import DEVICE_HELP, JSON_HELP, device_of, emit, fail, start, writable
from fastmlp.cli.options import Engine
from fastmlp.costs import floors, plans
from fastmlp.costs.ceilings import Ceilings, ceilings_of, device_name
from fastmlp.profiling.rows import Point
from fastmlp.profiling.trace import Kernel

EXAMPLE = "Example: fastmlp plot roofline --out roofline.svg"
#: Widths and batch of the nets whose training steps are profiled.
NETS = (((784, 256, 10), 256), ((784, 1024, 1024, 10), 1024))
#: Logits whose cross-entropy is.
LOGITS = (4096, 1000)
#: An exponential, a subtraction and two more an element, forward and backward: no products to count.
_OPERATIONS = 8
_STEPS = 10
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


def roofline(
    out: Path = typer.Option(Path("roofline.png"), metavar="FILE", help="A .png, .svg or .pdf."),
    device: str = typer.Option("", metavar="NAME", help=DEVICE_HELP),
    remeasure: bool = typer.Option(
        False, "--remeasure", help="Measure again what the device reaches, and keep the best."
    ),
    as_json: bool = typer.Option(False, "--json", help=JSON_HELP),
) -> None:
    """Our kernels under what this device reaches, in float32 and bfloat16.

    Every kernel of a training step of two nets, and a cross-entropy, by its operations a byte: under the
    slope it is bound by memory, under the flat roof by the products; how far below is what is left to gain.
    """
    console = start(as_json)
    draw, save = _plots(out)
    if not torch.cuda.is_available():
        os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # else it reports that it found no GPU
    where = device_of(device)
    with torch.cuda.device(where if where.type == "cuda" else -1):
        ceilings = ceilings_of(where, again=remeasure)
        points = [
            point for dtype in (torch.float32, torch.bfloat16) for point in measured(where, dtype, ceilings)
        ]
    note = (
        f"{device_name(where)}, torch {torch.__version__}; {ceilings.said}. Layers of "
        f"{' and '.join(f'{plans.name(widths)} (batch {batch})' for widths, batch in NETS)}; medians. "
        f"Of a cross-entropy {_OPERATIONS} operations an element count."
    )
    try:
        save(draw(points, ceilings, note=note), out)
    except OSError as error:
        fail(f"--out {out}: {error.strerror or error}")
    console.print(f"{len(points)} kernels; saved to {out}", style="bold")
    workload.say_ceilings(console, ceilings)
    if as_json:
        emit(
            {
                "picture": str(out),
                "device": device_name(where),
                "points": [point._asdict() for point in points],
                "ceilings": ceilings.json(),
            }
        )


def _plots(out: Path) -> tuple[Any, Any]:
    """What draws and what saves, if ``out`` can be drawn and written at all."""
    try:
        from fastmlp import plots
        from fastmlp.plots.save import kind_of

        kind_of(out)
    except ImportError as error:
        fail(str(error))
    except ValueError:
        fail(f"--out {out}: expected a name that ends in .png, .svg or .pdf", 2)
    writable(out, "--out")
    return plots.roofline, plots.save


def measured(where: torch.device, dtype: torch.dtype, ceilings: Ceilings) -> list[Point]:
    """The points of one dtype."""
    found = [p for widths, batch in NETS for p in _step(where, list(widths), batch, dtype, ceilings)]
    return [*found, _cross_entropy(where, dtype, ceilings)]


def _step(
    where: torch.device, widths: list[int], batch: int, dtype: torch.dtype, ceilings: Ceilings
) -> list[Point]:
    """The kernels of a training step that have products."""
    net = nets.build(widths, "relu").to(where)
    training = workload.training(net, widths, True, batch, _STEPS, dtype, Engine.fused)
    prof = fastmlp.profile(net, ceilings=ceilings)
    training.run()
    with prof:
        training.run()
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
    return [
        Point(shape, kind, operations, _bytes(kernels), statistics.median(k.seconds for k in kernels), of)
        for (kind, shape, operations, of), kernels in groups.items()
    ]


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
