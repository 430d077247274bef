"""What this machine reaches: copies, large matrix products, and an empty launch. Measured, never looked up.

floor = max(bytes / copy bandwidth, operations / matmul rate in that dtype) + launches x empty launch
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch

from fastmlp.costs.devices import processor
from fastmlp.costs.floors import Work
from fastmlp.kernels.tiles import cache as files

_COPIES = tuple(
    1 << power for power in (16, 18, 20, 22, 24, 26, 28, 30)
)  # bytes moved, of which half are read
_LAUNCHES = 100  # in the CUDA graph of which one empty launch is timed
#: The least seconds of a reading: short on a CPU, so that some are not interrupted.
_BLOCK = {"cuda": 5e-3, "cpu": 5e-4}
_SIDES = {"cuda": (8192,), "cpu": (512, 1024, 2048)}  # of the matrices
_SECONDS = 3.0  # the most that one ceiling may take
_BUSY = 0.5  # load per core; above it others take part of the machine


@dataclass(frozen=True)
class Ceilings:
    """What this machine reaches."""

    copy: dict[int, float]  # bytes moved by a copy: bytes a second; small ones stay in a cache
    matmul: dict[str, float]  # dtype ("tf32" is one): operations a second
    launch: float  # seconds
    taken: str = ""  # when they were measured, as 2026-05-01 09:30
    load: float | None = None  # of the machine before that: processes that want to run, per core

    @property
    def said(self) -> str:
        """When they were taken, and under what load."""
        load = "an unknown load" if self.load is None else f"a load of {self.load:.2f} a core"
        return f"ceilings measured {self.taken or 'at an unknown time'} under {load}"

    @property
    def doubtful(self) -> bool:
        """Whether others used the machine then."""
        return (self.load or 0.0) > _BUSY

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


def ceilings_of(device: torch.device, again: bool = False) -> Ceilings:
    """The ceilings of ``device``, measured once (some seconds) and kept in the cache directory.

    Another device, torch or number of threads is measured anew; so are all with ``again``, where the best
    of both counts, as the machine may have been busy, and those that do not say when they were taken.
    """
    key = f"{device_name(device)}, torch {torch.__version__}, {torch.get_num_threads()} threads"
    known = _known.get(key) or _kept(files.read(_FILE).get(key))
    if known is None or again:
        with torch.cuda.device(device if device.type == "cuda" else -1):
            found = measure_ceilings(device.type, quick=True)
        known = found if known is None else _best_of(known, found)
        with contextlib.suppress(OSError):  # it is measured again next time
            files.add(_FILE, {key: known.json()})
    _known[key] = known
    return known


_FILE = "ceilings.json"
_known: dict[str, Ceilings] = {}


def _kept(found: Any) -> Ceilings | None:
    """What the file holds; None if it is not such an entry, or does not say when it was measured."""
    try:
        copy = {int(size): float(rate) for size, rate in found["copy"].items()}
        matmul = {str(dtype): float(rate) for dtype, rate in found["matmul"].items()}
        rates = [*copy.values(), *matmul.values(), float(found["launch"])]
        if not copy or "float32" not in matmul or not all(0 < rate < float("inf") for rate in rates):
            return None
        load = None if found["load"] is None else float(found["load"])
        return Ceilings(copy, matmul, float(found["launch"]), str(found["taken"]), load)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
        return None


def _best_of(a: Ceilings, b: Ceilings) -> Ceilings:
    copy = {size: max(rate, a.copy.get(size, 0.0)) for size, rate in b.copy.items()}
    matmul = {dtype: max(rate, a.matmul.get(dtype, 0.0)) for dtype, rate in b.matmul.items()}
    loads = [load for load in (a.load, b.load) if load is not None]
    return Ceilings(copy, matmul, min(a.launch, b.launch), b.taken, min(loads, default=None))


def device_name(device: torch.device) -> str:
    """As the maker calls it."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else processor()


def measure_ceilings(device: str, quick: bool = False) -> Ceilings:
    """Measure them on the current device of a type, "cpu" or "cuda"."""
    taken, load = time.strftime("%Y-%m-%d %H:%M"), _load()
    rounds = 20 if quick else 60
    largest = _COPIES[-1] if device == "cuda" else _COPIES[-2]
    copy = {size: size / _copy(size, device, rounds) for size in _COPIES if size <= largest}
    matmul = {
        str(dtype).removeprefix("torch."): _matmul(dtype, device, rounds)
        for dtype in (torch.float32, torch.bfloat16, *((torch.float16,) if device == "cuda" else ()))
    }
    if device == "cuda":
        with tf32():
            matmul["tf32"] = _matmul(torch.float32, device, rounds)
    return Ceilings(copy, matmul, _launch(device, rounds), taken, load)


def _load() -> float | None:
    """How many processes per core wanted to run in the last minute; None where nobody counts them."""
    try:
        return os.getloadavg()[0] / (os.cpu_count() or 1)
    except (AttributeError, OSError):
        return None


@contextmanager
def tf32() -> Iterator[None]:
    """Inside the ``with`` block float32 products on a GPU run in TF32."""
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        yield
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


def _best(call: Callable[[], object], device: str, rounds: int) -> float:
    """Seconds a call takes at its best: a ceiling is what the machine can do."""

    def block(calls: int) -> float:
        if device == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(calls):
            call()
        if device == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - start) / calls

    block(1)  # fresh memory, a library's first call
    calls = max(1, min(1000, round(_BLOCK[device] / max(min(block(1) for _ in range(4)), 1e-9))))
    began, best = time.perf_counter(), block(calls)
    for _ in range(rounds - 1):
        if time.perf_counter() - began > _SECONDS:
            break
        best = min(best, block(calls))
    return best


def _copy(size: int, device: str, rounds: int) -> float:
    source, target = (torch.ones(size // 2, dtype=torch.uint8, device=device) for _ in range(2))
    return _best(lambda: target.copy_(source), device, rounds)


def _matmul(dtype: torch.dtype, device: str, rounds: int) -> float:
    """Operations a second, at the best of the sides."""
    rates = []
    for side in _SIDES[device]:
        a, b = (torch.randn(side, side, dtype=dtype, device=device) for _ in range(2))
        out = torch.empty_like(a)
        seconds = _best(partial(torch.mm, a, b, out=out), device, rounds)
        rates.append(2 * side**3 / seconds)
        if 8 * seconds > _SECONDS / 6:  # the next one, six times: a CPU without bfloat16 takes minutes
            break
    return max(rates)


def _launch(device: str, rounds: int) -> float:
    """On a GPU an op on one element inside a CUDA graph, where launches are cheapest; else its dispatch."""
    one = torch.zeros(1, device=device, dtype=torch.float32)
    if device != "cuda":
        return _best(one.zero_, device, rounds)
    graph = torch.cuda.CUDAGraph()
    one.zero_()
    with torch.cuda.graph(graph):
        for _ in range(_LAUNCHES):
            one.add_(1)
    return _best(graph.replay, device, rounds) / _LAUNCHES
