"""Medians of interleaved runs: peers take turns, so that what the machine does meets all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Timing:
    """Seconds a call: the median, and the quartiles as the spread."""

    median: float
    low: float
    high: float


def synchronize(device: str) -> None:
    """Wait for the GPU, where there is one."""
    if device == "cuda":
        torch.cuda.synchronize()


def interleave(
    runs: dict[str, Callable[[], object]], device: str, rounds: int = 31, at_least: float = 2e-3
) -> dict[str, Timing]:
    """Time every run, in turns of blocks of calls that each take about ``at_least`` seconds."""
    calls = {name: _calls(run, device, at_least) for name, run in runs.items()}
    samples: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds):
        names = list(runs) if turn % 2 == 0 else list(runs)[::-1]
        for name in names:
            samples[name].append(_block(runs[name], calls[name], device))
    return {name: _summary(values) for name, values in samples.items()}


def _block(run: Callable[[], object], calls: int, device: str) -> float:
    synchronize(device)
    start = time.perf_counter()
    for _ in range(calls):
        run()
    synchronize(device)
    return (time.perf_counter() - start) / calls


def _calls(run: Callable[[], object], device: str, at_least: float) -> int:
    """Warm up, and find how many calls take ``at_least`` seconds."""
    for _ in range(3):
        run()
    once = min(_block(run, 1, device) for _ in range(3))
    return max(1, min(1000, round(at_least / once)))


def _summary(values: list[float]) -> Timing:
    low, median, high = statistics.quantiles(values, n=4)
    return Timing(median, low, high)
