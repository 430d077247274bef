"""The least time a piece of work can take on this machine, from ceilings measured in the same run.

floor = max(bytes / copy bandwidth, operations / matmul rate in that dtype) + launches x empty launch
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from fastmlp.work import Work

from .timing import Run, interleave

_COPIES = tuple(
    1 << power for power in (16, 18, 20, 22, 24, 26, 28, 30)
)  # bytes moved, of which half are read
_LAUNCHES = 100  # in the CUDA graph of which one empty launch is timed


@dataclass(frozen=True)
class Ceilings:
    """What this machine reaches."""

    copy: dict[int, float]  # bytes moved by a copy: bytes a second; small ones stay in a cache
    matmul: dict[str, float]  # dtype: operations a second
    launch: float  # seconds

    def bandwidth(self, size: int) -> float:
        """Bytes a second for ``size`` bytes: the fastest copy of at least as many, or of the most."""
        return max(
            (rate for moved, rate in self.copy.items() if moved >= size), default=self.copy[max(self.copy)]
        )

    def floor(self, work: Work, dtype: str) -> float:
        """Seconds below which ``work`` cannot be done launch by launch."""
        memory = work.bytes / self.bandwidth(work.footprint)
        products = work.operations / self.matmul[dtype] if work.operations else 0.0
        return max(memory, products) + work.launches * self.launch

    def json(self) -> dict[str, Any]:
        """For the report."""
        return asdict(self)


def measure_ceilings(device: str, quick: bool = False) -> Ceilings:
    """Copies, large matrix products, and an empty launch."""
    rounds = 5 if quick else 15
    largest = _COPIES[-1] if device == "cuda" else _COPIES[-2]
    copy = {size: size / _copy(size, device, rounds) for size in _COPIES if size <= largest}
    side = 8192 if device == "cuda" else 1024 if quick else 2048
    matmul = {
        str(dtype).removeprefix("torch."): 2 * side**3 / _matmul(side, dtype, device, rounds)
        for dtype in (torch.float32, torch.bfloat16)
    }
    return Ceilings(copy, matmul, _launch(device, rounds))


def _seconds(run: Run, device: str, rounds: int) -> float:
    """The best: a ceiling is what the machine can do."""
    run.call()
    return interleave({"ceiling": run}, device, rounds, seconds=3.0)["ceiling"].best


def _copy(size: int, device: str, rounds: int) -> float:
    source, target = (torch.ones(size // 2, dtype=torch.uint8, device=device) for _ in range(2))
    return _seconds(Run(lambda: target.copy_(source)), device, rounds)


def _matmul(side: int, dtype: torch.dtype, device: str, rounds: int) -> float:
    a, b = (torch.randn(side, side, dtype=dtype, device=device) for _ in range(2))
    out = torch.empty_like(a)
    return _seconds(Run(lambda: torch.mm(a, b, out=out)), device, rounds)


def _launch(device: str, rounds: int) -> float:
    """On a GPU an op on one element inside a CUDA graph, where launches are cheapest; else its dispatch."""
    one = torch.zeros(1, device=device)
    if device != "cuda":
        return _seconds(Run(lambda: one.zero_()), device, rounds)
    graph = torch.cuda.CUDAGraph()
    one.zero_()
    with torch.cuda.graph(graph):
        for _ in range(_LAUNCHES):
            one.add_(1)
    return _seconds(Run(graph.replay, steps=_LAUNCHES), device, rounds)
