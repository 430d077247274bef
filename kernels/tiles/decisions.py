"""Which way a layer's products go: a table of measurements, and a rule where nothing was measured.

``pointer``  `linear` and `linear_backward`: any architecture, any strides, small layers and long batches
``tma``      `linear_tma`: large products on sm_90 and later
``library``  cuBLAS, and pointwise kernels after it

A row of the table is one measurement of all three. Rows ship with the package, as JSON (none so far: none
was measured), and ``python -m fastmlp.backends.decide`` adds this machine's own, which come first.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastmlp.kernels import launch
from fastmlp.kernels.launch import INTERPRETED, arch_of, cdiv, num_sms
from fastmlp.kernels.tiles import cache as cache_files
from fastmlp.kernels.tiles import configs
from fastmlp.kernels.tiles.configs import TmaTile

POINTER, TMA, LIBRARY = "pointer", "tma", "library"
CONTENDERS = (TMA, POINTER, LIBRARY)
#: Products of a layer that are decided together. A prologue undoes the activation as dY is read.
OPS = ("forward", "backward", "backward_prologue")
DTYPES = ("bf16", "fp16", "tf32", "fp32", "autocast")


@dataclass(frozen=True)
class Row:
    """One measurement."""

    device: str
    arch: str
    op: str
    dtype: str
    m: int
    n: int
    k: int
    seconds: dict[str, list[float]]  # of each contender that could run: first quartile, median, third
    versions: dict[str, str]  # of torch, triton and cuda
    date: str
    command: str

    def __post_init__(self) -> None:
        texts = self.device, self.arch, self.date, self.command, *self.versions.values()
        if not all(isinstance(text, str) for text in texts):
            raise ValueError("device, arch, versions, date or command are no texts")
        sizes = all(isinstance(size, int) and size > 0 for size in (self.m, self.n, self.k))
        known = self.op in OPS and self.dtype in DTYPES and set(self.seconds) <= set(CONTENDERS)
        if not (sizes and known and self.seconds):
            raise ValueError("an unknown op, dtype or contender, a size below 1, or no times")
        for times in self.seconds.values():
            if not (len(times) == 3 and 0 < float(times[0]) <= times[1] <= float(times[2]) < math.inf):
                raise ValueError(f"seconds: expected the quartiles, first to third, got {times}")

    @property
    def key(self) -> str:
        """What it is kept by: measured again, it is replaced."""
        return f"{self.device}/{self.op}/{self.dtype}/{self.m},{self.n},{self.k}"

    @property
    def order(self) -> tuple[str, ...]:
        """The contenders, by median time."""
        return tuple(sorted(self.seconds, key=lambda name: self.seconds[name][1]))


class Machine(NamedTuple):
    """What a decision depends on."""

    device: str
    arch: str
    sms: int


class Choice(NamedTuple):
    """The ways to go, best first. TMA may not be able to take the arguments: then the next one runs."""

    order: tuple[str, ...]
    row: Row | None  # the measurement that made it; None where the rule for unmeasured shapes did


def order(
    op: str, x: Tensor, weight: Tensor, dtype: torch.dtype, precision: str, rows: int
) -> tuple[str, ...]:
    """The ways to go, best first, for ``rows`` examples through ``weight`` (N, K): a cached answer."""
    forced = _forced
    if forced is not None:
        return forced
    n, k = weight.shape
    # The batch counts by its power of two: a new batch size is rarely a new question.
    return _order(op, x.get_device(), weight.dtype, dtype, precision, (rows - 1).bit_length(), n, k)


_forced: tuple[str, ...] | None = None


@contextmanager
def force(*ways: str) -> Iterator[None]:
    """Inside the ``with`` block this is the order, whatever the table says."""
    global _forced
    before, _forced = _forced, ways
    launch.forget()
    try:
        yield
    finally:
        _forced = before
        launch.forget()


@cache
def _order(
    op: str, index: int, storage: torch.dtype, dtype: torch.dtype, precision: str, rows: int, n: int, k: int
) -> tuple[str, ...]:
    return choose(machine(index), op, dtype_name(storage, dtype, precision), 1 << rows, n, k).order


def machine(index: int = 0) -> Machine:
    """GPU ``index``, or what stands in for it where there is none."""
    if not torch.cuda.is_available():
        return Machine("no GPU", "interpret" if INTERPRETED else "none", num_sms(0))
    arch = arch_of(torch.empty(0, device=torch.device("cuda", index), dtype=torch.float32))
    return Machine(torch.cuda.get_device_name(index), arch, num_sms(index))


def dtype_name(storage: torch.dtype, dtype: torch.dtype, precision: str) -> str:
    """The table's word for weights kept in ``storage`` and multiplied in ``dtype``."""
    if storage != dtype:
        return "autocast"
    return {torch.bfloat16: "bf16", torch.float16: "fp16"}.get(
        dtype, "tf32" if precision == "tf32" else "fp32"
    )


def choose(machine: Machine, op: str, dtype: str, m: int, n: int, k: int) -> Choice:
    """The decision for ``m`` examples through a weight (n, k) on ``machine``.

    It is that of the nearest measurement of the same op and dtype: on this very device before others of its
    architecture, this machine's before the package's, and none that is more than a power of two away in m,
    n or k, each rounded up to one.
    """
    near: list[tuple[tuple[bool, bool, int], Row]] = []
    for ours, row in _table():
        far = [abs(_power(a) - _power(b)) for a, b in ((m, row.m), (n, row.n), (k, row.k))]
        if row.arch == machine.arch and (row.op, row.dtype) == (op, dtype) and max(far) <= 1:
            near.append(((row.device != machine.device, not ours, sum(far)), row))
    if near:
        row = min(near, key=lambda one: one[0])[1]
        return Choice((TMA, POINTER) if row.order == (TMA,) else row.order, row)
    return Choice((TMA, POINTER) if _large(machine, op, dtype, m, n, k) else (POINTER,), None)


def _power(size: int) -> int:
    return (size - 1).bit_length()


def _large(machine: Machine, op: str, dtype: str, m: int, n: int, k: int) -> bool:
    """Whether TMA runs unmeasured: for a wide weight, if each product has tiles for half of the machine."""
    precision = {"tf32": "tf32", "fp32": "ieee"}.get(dtype, "half")
    family = "matmul" if op == "forward" else "matmul_backward"
    if op == "backward_prologue" or dtype == "autocast" or configs.bucket(n, k) == "narrow":
        return False
    if not configs.exists(family, machine.arch, precision):
        return False
    tile = configs.lookup(family, machine.arch, precision, n, k)
    assert isinstance(tile, TmaTile)
    products = [(m, n)] if op == "forward" else [(m, k), (n, k)]
    return all(2 * cdiv(a, tile.BLOCK_M) * cdiv(b, tile.BLOCK_N) > machine.sms for a, b in products)


def explain(machine: Machine, op: str, dtype: str, m: int, n: int, k: int) -> str:
    """What would run, and the measurement or the rule that says so, on one line."""
    ways, row = choose(machine, op, dtype, m, n, k)
    what = f"{op} {m} x {k} -> {n} {dtype} on {machine.device} ({machine.arch}): {' else '.join(ways)}"
    if row is None:
        return f"{what}; not measured there"
    times = ", ".join(f"{way} {1e3 * row.seconds[way][1]:.4g} ms" for way in row.order)
    versions = ", ".join(f"{name} {version}" for name, version in row.versions.items())
    return f"{what}; {row.device}, {row.m} x {row.k} -> {row.n}: {times} ({row.date}, {versions})"


@cache
def _table() -> list[tuple[bool, Row]]:
    """Every row, and whether this machine's user measured it."""
    return [(False, row) for row in shipped()] + [(True, row) for row in read()]


def shipped() -> list[Row]:
    """The rows that come with the package."""
    return _parsed(json.loads(_SHIPPED.read_text()), _SHIPPED)


def path() -> Path:
    """Where this machine's measurements are kept."""
    return cache_files.path(_FILE)


def read() -> list[Row]:
    """The rows of the cache file, without damaged ones, of which it warns."""
    return _parsed(cache_files.read(_FILE), path())


def write(rows: Iterable[Row]) -> Path:
    """Add ``rows`` to the cache file, in place of older ones with their keys, and use them from now on."""
    new = list(rows)
    file = cache_files.update(
        _FILE, lambda kept: {row.key: asdict(row) for row in (*_parsed(kept, path()), *new)}
    )
    forget()
    return file


def forget() -> None:
    """Read the files again at the next question."""
    _table.cache_clear()
    _order.cache_clear()
    launch.forget()


def _parsed(entries: dict[str, Any], file: Path) -> list[Row]:
    return list(cache_files.parsed(entries, lambda _, entry: Row(**entry), "a measurement", file).values())


_FILE = "decisions.json"
_SHIPPED = Path(__file__).with_name(_FILE)
