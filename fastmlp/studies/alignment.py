"""Sizes that are multiples of 8, and their neighbours: what does a row more cost?"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from fastmlp.engine import TrainStep
from fastmlp.modules import MLP, CrossEntropyLoss
from fastmlp.studies.exercise import Say
from fastmlp.studies.study import Study, check_some, machine, place

if TYPE_CHECKING:
    from matplotlib.figure import Figure

QUESTION = "What does it cost when a size is no multiple of 8?"
WORK = ("matrix product", "training step")


def alignment(
    sizes: Sequence[int] | None = None,
    *,
    dtypes: Sequence[torch.dtype] = (torch.float32, torch.bfloat16),
    rounds: int | None = None,
    small: bool = False,
    data: Path | str | None = None,
    device: torch.device | str | None = None,
    say: Say = print,
) -> Study:
    """Time n x n x n matrix products, and training steps of n-n-10 on batches of n.

    The sizes take turns, ``rounds`` times, so that what the machine does meanwhile meets all of them alike.

    Args:
        sizes: n; by default 1024, 1025, 1026, 1028, 1032.
        dtypes: of the products.
        rounds: turns; by default 15, or 3 in a small run.
        small: in a second: sizes 64 to 72.
        data: None: the study times random numbers.
        device: where; None for the GPU if there is one.
        say: told what is done.

    Returns:
        A row for each dtype and size: median and quartiles in ms, and the median over the first size's.

    Raises:
        ValueError: ``data`` is given; nothing to time.
    """
    if data is not None:
        raise ValueError(f"data: expected None, since this study times random numbers, got {data}")
    sizes = ((64, 65, 72) if small else (1024, 1025, 1026, 1028, 1032)) if sizes is None else sizes
    rounds = (3 if small else 15) if rounds is None else rounds
    check_some(sizes=sizes, dtypes=dtypes, rounds=range(rounds))
    where = place(device)
    rows = []
    for dtype in dtypes:
        name = str(dtype).removeprefix("torch.")
        timings = {
            (what, n): make(n, dtype, where) for what, make in zip(WORK, (_product, _step)) for n in sizes
        }
        found = _interleaved(timings, rounds, 5e-4 if small else 5e-3)
        for n in sizes:
            row: dict[str, Any] = {"size": n, "dtype": name}
            for what in WORK:
                low, median, high = found[what, n]
                row[f"{what}, ms"] = median
                row[f"{what}, quartiles"] = [[low, high]]
                row[f"{what}, of {sizes[0]}'s"] = median / found[what, sizes[0]][1]
            rows.append(row)
        say(f"{name}: done")
    setup = {
        "work": "n x n x n products; steps of n-n-10, batch n, SGD",
        "times": f"medians and quartiles of {rounds} turns",
        "machine": machine(where),
    }
    return Study("alignment", QUESTION, rows, setup, _draw)


def _product(n: int, dtype: torch.dtype, device: torch.device) -> Callable[[], object]:
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    return lambda: torch.mm(a, b, out=out)


def _step(n: int, dtype: torch.dtype, device: torch.device) -> Callable[[], object]:
    net = MLP(n, [n, 10]).to(device)
    step = TrainStep(net, CrossEntropyLoss(), torch.optim.SGD(net.parameters(), lr=1e-3), dtype=dtype)
    x, y = torch.randn(n, n, device=device), torch.randint(10, (n,), device=device)
    return lambda: step(x, y)


def _interleaved(
    calls: dict[Any, Callable[[], object]], rounds: int, at_least: float
) -> dict[Any, tuple[float, float, float]]:
    """Quartiles of the time of each call in ms; they take turns, in blocks of ``at_least`` seconds."""
    from torch.utils.benchmark import Timer  # which looks for a compiler as it is imported

    timers = {
        key: Timer("call()", globals={"call": call}, num_threads=torch.get_num_threads())
        for key, call in calls.items()
    }
    numbers = {}
    for key, timer in timers.items():
        timer.timeit(2)  # compiles, and fills caches
        numbers[key] = max(1, round(at_least / timer.timeit(1).median))
    samples: dict[Any, list[float]] = {key: [] for key in timers}
    for turn in range(rounds):
        for key in list(timers)[:: 1 if turn % 2 == 0 else -1]:
            samples[key].append(1e3 * timers[key].timeit(numbers[key]).median)
    return {key: _quartiles(values) for key, values in samples.items()}


def _quartiles(values: list[float]) -> tuple[float, float, float]:
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, median, high


def _draw(study: Study) -> Figure:
    from fastmlp.plots.timed import timed  # matplotlib is needed by pictures alone

    return timed(study.rows, WORK, title=study.question, note=study.caption())
