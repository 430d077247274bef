"""The points of `plot roofline`: kernels, measured on a device."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterator

import torch
from torch import nn

import fastmlp
from fastmlp.cli import nets, workload
from fastmlp.cli.options import Dtype, Engine
from fastmlp.cli.profile import Steps
from fastmlp.costs import floors, plans
from fastmlp.costs.ceilings import Ceilings, device_name
from fastmlp.profiling.rows import Point
from fastmlp.profiling.trace import Kernel

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


def note(where: torch.device, ceilings: Ceilings) -> str:
    """What was measured, and when."""
    run = " and ".join(f"{plans.name(widths)} (batch {batch})" for widths, batch in NETS)
    return (
        f"{device_name(where)}, torch {torch.__version__}; {ceilings.said}. Layers of {run}; medians. "
        f"Of a cross-entropy {_OPERATIONS} operations an element count."
    )


def points(where: torch.device, ceilings: Ceilings) -> Iterator[Point]:
    """Those of both dtypes."""
    for dtype in (Dtype.float32, Dtype.bfloat16):
        for widths, batch in NETS:
            yield from _step(where, list(widths), batch, dtype, ceilings)
        yield _cross_entropy(where, getattr(torch, dtype.value), ceilings)


def _step(
    where: torch.device, widths: list[int], batch: int, dtype: Dtype, ceilings: Ceilings
) -> Iterator[Point]:
    """The kernels of a training step that have products."""
    net = nets.build(widths, "relu").to(where)
    options = Steps(batch_size=batch, dtype=dtype, engine=Engine.fused, steps=_STEPS)
    training = workload.training(options, workload.Net(net, widths, True))
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
