"""Kernels out of traces: a GPU's are written by hand here, as CUPTI and torch's profiler write them."""

from __future__ import annotations

from typing import Any

import pytest

from fastmlp.costs.floors import Work
from fastmlp.profiling.trace import LAYER, WHOLE, Event, Kernel, Launched, Trace

WORK = Work(1000, 100, 1, 100)


def event(cat: str, name: str, ts: float, dur: float, tid: Any = 1, **args: Any) -> Event:
    return {"ph": "X", "cat": cat, "name": name, "ts": ts, "dur": dur, "tid": tid, "args": args}


def whole(dur: float = 1000) -> Event:
    return event("user_annotation", WHOLE, 0, dur)


def launched(name: str, layer: str, grid: int = 1, work: Work | None = WORK) -> Launched:
    return Launched(name, (grid, 1, 1), work, "float32", layer)


def shown(trace: Trace) -> list[tuple[str, str, Work | None]]:
    return [(kernel.name, kernel.layer, kernel.work) for kernel in trace.kernels]


def our_launch(name: str, ts: float, correlation: int, layer: str = "", tid: int = 1) -> list[Event]:
    """Its ranges, the driver's call, and the kernel 100 µs later."""
    within = [event("user_annotation", LAYER + layer, ts, 9, tid)] if layer else []
    return [
        *within,
        event("user_annotation", name, ts + 1, 7, tid),
        event("cuda_driver", "cuLaunchKernelEx", ts + 2, 3, tid, correlation=correlation),
        event("kernel", name, ts + 100, 20, "stream 7", correlation=correlation, grid=[1, 1, 1]),
    ]


def test_our_kernels_on_a_gpu() -> None:
    """The backward's thread launches between two launches of the main thread's."""
    made = [
        launched("linear_act_kernel", "0"),
        launched("linear_backward_kernel", "0"),
        launched("update_kernel", ""),
    ]
    events = [
        whole(),
        *our_launch("linear_act_kernel", 10, 1, "0"),
        *our_launch("update_kernel", 300, 3),
        *our_launch("linear_backward_kernel", 200, 2, "0", tid=2),
    ]
    trace = Trace(events, made)
    assert shown(trace) == [
        ("linear_act_kernel", "0", WORK),
        ("linear_backward_kernel", "0", WORK),
        ("update_kernel", "", WORK),
    ]
    first = trace.kernels[0]
    assert first == Kernel(first.name, "0", pytest.approx(110e-6), pytest.approx(20e-6), WORK, "float32")
    assert trace.seconds == pytest.approx(1e-3)
    assert trace.busy == pytest.approx(60e-6)


MM = {
    "Input Dims": [[6, 5], [5, 4]],
    "Input Strides": [[5, 1], [4, 1]],
    "Input type": ["float", "float"],
    "Concrete Inputs": ["", ""],
}


@pytest.mark.parametrize("kernels", [1, 2])
def test_an_op_of_torchs_on_a_gpu(kernels: int) -> None:
    """What it takes is known of its one kernel; of several it is known of none."""
    events = [
        whole(),
        event("user_annotation", LAYER + "head", 5, 90),
        event("cpu_op", "aten::matmul", 9, 60),
    ]
    events.append(event("cpu_op", "aten::mm", 10, 50, **MM))
    for i in range(kernels):
        events.append(event("cuda_runtime", "cudaLaunchKernel", 11 + 10 * i, 5, correlation=i))
        events.append(event("kernel", f"gemm{i}", 200 + i, 1, "stream 7", correlation=i))
    events.append(event("cuda_runtime", "cudaMemsetAsync", 50, 5, correlation=9))
    events.append(event("gpu_memset", "Memset (Device)", 199, 1, "stream 7", correlation=9, bytes=64))
    moved = 4 * (30 + 20 + 24)
    known = Work(2 * 6 * 5 * 4, moved, 1, moved) if kernels == 1 else None
    assert shown(Trace(events)) == [
        ("Memset (Device)", "head", Work(0, 64, 1, 64)),
        *((f"gemm{i}", "head", known) for i in range(kernels)),
    ]


def test_a_graphs_kernels_are_known_from_its_capture() -> None:
    """By name and grid, where these tell."""
    captured = [
        launched("linear_act_kernel", "0", grid=4),
        launched("linear_act_kernel", "2", grid=8, work=Work(5, 5, 1, 5)),
        launched("linear_act_kernel", "4", grid=8, work=Work(5, 5, 1, 5)),
        launched("head_kernel", "6", grid=2),
        launched("head_kernel", "6", grid=2, work=Work(7, 7, 1, 7)),
    ]
    events = [whole(), event("cuda_runtime", "cudaGraphLaunch", 10, 5, correlation=1)]
    for i, (name, grid) in enumerate(
        [("linear_act_kernel", 4), ("linear_act_kernel", 8), ("head_kernel", 2), ("x", 1)]
    ):
        events.append(event("kernel", name, 20 + i, 1, "stream 7", correlation=1, grid=[grid, 1, 1]))
    assert shown(Trace(events, (), captured)) == [
        ("linear_act_kernel", "0", WORK),
        ("linear_act_kernel", "", Work(5, 5, 1, 5)),  # two layers of one shape
        ("head_kernel", "6", None),  # of two sizes
        ("x", "", None),
    ]


def test_kernels_at_the_same_time_are_busy_once() -> None:
    events = [whole()]
    for i, (ts, dur) in enumerate([(100, 50), (120, 10), (140, 60), (300, 10)]):
        events.append(event("kernel", f"k{i}", ts, dur, f"stream {i}", correlation=i))
    trace = Trace(events)
    assert trace.busy == pytest.approx(110e-6)
    assert len(trace.kernels) == 4  # also those whose call the trace lacks


def test_a_backward_is_its_forwards_layer() -> None:
    events = [
        whole(),
        event("user_annotation", LAYER + "0", 1, 10),
        event("cpu_op", "aten::mm", 2, 5, **MM, **{"Sequence number": 7, "Fwd thread id": 0}),
        event("cpu_op", "AddmmBackward0", 30, 9, **{"Sequence number": 7, "Fwd thread id": 1}),
        event("cpu_op", "aten::mm", 31, 5, **MM),
        event("cpu_op", "AddmmBackward0", 50, 9, **{"Sequence number": 8, "Fwd thread id": 1}),
        event("cpu_op", "aten::mm", 51, 5, **MM),
    ]
    assert [kernel.layer for kernel in Trace(events).kernels] == ["0", "0", ""]


def test_other_ranges_name_what_is_in_no_layer() -> None:
    events = [
        whole(),
        event("user_annotation", "Optimizer.step#SGD.step", 1, 10),
        event("cpu_op", "aten::mm", 2, 5, **MM),
    ]
    assert [kernel.layer for kernel in Trace(events).kernels] == ["Optimizer.step#SGD.step"]


def test_nothing() -> None:
    trace = Trace([])
    assert (trace.seconds, trace.busy, trace.kernels) == (0.0, 0.0, [])
