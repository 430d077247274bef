"""Medians of interleaved runs: peers take turns, so that whatever else the machine does affects all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

_LEAST_ROUNDS = 3  # however slow the row is
_SLOW = 0.2  # seconds; if a call takes longer, the caller's first call was warm-up enough


@dataclass(frozen=True)
class Run:
    """What is timed: one callable."""

    call: Callable[[], Any]
    steps: int = 1  # pieces of work that a call does
    wait: Callable[[], object] | None = None  # after a block, for what `synchronize` does not know of
    clocked: bool = False  # the call times itself and returns the seconds
    result: Callable[[], Any] | None = None  # what a call has computed, if it does not return it


@dataclass(frozen=True)
class Timing:
    """Seconds for a piece of work: the median, and the quartiles as the spread."""

    median: float
    low: float
    high: float
    best: float
    rounds: int


def synchronize(device: str) -> None:
    """Wait for the GPU, where there is one."""
    if device == "cuda":
        torch.cuda.synchronize()


def interleave(
    runs: dict[str, Run], device: str, rounds: int = 31, seconds: float = 60.0, at_least: float = 5e-3
) -> dict[str, Timing]:
    """Time the runs, each called once before, in turns; a turn's calls take about ``at_least`` seconds.

    There are ``rounds`` turns, or fewer where they would take more than ``seconds``.
    """
    calls: dict[str, int] = {}
    samples: dict[str, list[float]] = {}
    for name, run in runs.items():
        calls[name], samples[name] = _warm_up(run, device, at_least)
    began = time.perf_counter()
    for turn in range(rounds):
        if min(map(len, samples.values())) >= _LEAST_ROUNDS and time.perf_counter() - began > seconds:
            break
        names = list(runs) if turn % 2 == 0 else list(runs)[::-1]
        for name in names:
            if calls[name] > 1:  # the peer before leaves its threads spinning and the caches full
                runs[name].call()
            samples[name].append(_block(runs[name], calls[name], device))
    return {name: _summary(values) for name, values in samples.items()}


def _block(run: Run, calls: int, device: str) -> float:
    if run.clocked:
        return sum(run.call() for _ in range(calls)) / (calls * run.steps)
    finish(run, device)
    start = time.perf_counter()
    for _ in range(calls):
        run.call()
    finish(run, device)
    return (time.perf_counter() - start) / (calls * run.steps)


def finish(run: Run, device: str) -> None:
    """Wait for what its calls started."""
    if run.wait is not None:
        run.wait()
    synchronize(device)


def _warm_up(run: Run, device: str, at_least: float) -> tuple[int, list[float]]:
    """How many calls take ``at_least`` seconds, and the samples so far: a slow call already counts."""
    once = _block(run, 1, device)
    if once * run.steps >= _SLOW:
        return 1, [once]
    once = min(_block(run, 1, device) * run.steps for _ in range(4))
    return max(1, min(1000, round(at_least / max(once, 1e-9)))), []


def _summary(values: list[float]) -> Timing:
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Timing(median, low, high, min(values), len(values))
