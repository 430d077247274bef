"""The table: a row for each kernel in each layer, beside what the device reaches."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from fastmlp import markup
from fastmlp.costs.ceilings import Ceilings
from fastmlp.profiling.trace import Kernel


@dataclass(frozen=True)
class Row:
    """A kernel in a layer. None is what is not known."""

    name: str
    layer: str  # its module's qualified name, or another range that it ran in; "" for none
    seconds: float  # of all launches together
    launches: int
    bytes: int | None  # that a launch reads and writes, on average
    operations: int | None  # of the matrix products of a launch
    dtype: str  # that the products run in
    bandwidth: float | None  # bytes a second as a share of what a copy as large reaches
    peak: float | None  # operations a second as a share of what a large product reaches
    floor: float | None  # seconds below which a launch cannot be done

    @property
    def mean(self) -> float:
        """Seconds a launch."""
        return self.seconds / self.launches

    @property
    def efficiency(self) -> float | None:
        """floor / time: 1 is as fast as this device can."""
        return None if self.floor is None else self.floor / self.mean

    def to_json(self) -> dict[str, Any]:
        """All of it, and what follows from it, as plain data."""
        return {**asdict(self), "mean": self.mean, "efficiency": self.efficiency}


def rows(kernels: Iterable[Kernel], ceilings: Ceilings) -> list[Row]:
    """A row for each name and layer, the longest first."""
    groups: dict[tuple[str, str, str], list[Kernel]] = defaultdict(list)
    for kernel in kernels:
        groups[kernel.name, kernel.layer, kernel.dtype].append(kernel)
    found = [_row(group, ceilings) for group in groups.values()]
    return sorted(found, key=lambda row: -row.seconds)


def _row(group: list[Kernel], ceilings: Ceilings) -> Row:
    first, launches = group[0], len(group)
    seconds = sum(kernel.seconds for kernel in group)
    works = [kernel.work for kernel in group if kernel.work is not None]
    if len(works) < launches:
        return Row(first.name, first.layer, seconds, launches, None, None, first.dtype, None, None, None)
    moved, operations = (sum(w.bytes for w in works), sum(w.operations for w in works))
    rate = ceilings.matmul.get(first.dtype)
    known = rate is not None or not any(work.operations for work in works)
    at_best = sum(work.bytes / ceilings.bandwidth(work.footprint) for work in works)
    return Row(
        first.name,
        first.layer,
        seconds,
        launches,
        round(moved / launches),
        round(operations / launches),
        first.dtype,
        _share(at_best, seconds) if moved else None,
        operations / rate / seconds if rate and operations and seconds else None,
        sum(ceilings.floor(work, first.dtype) for work in works) / launches if known else None,
    )


def _share(least: float, seconds: float) -> float | None:
    return least / seconds if seconds else None


def table(found: list[Row], sort: str = "time", limit: int | None = 20, width: int | None = None) -> Any:
    """The rows as a ``rich.table.Table``; those beyond ``limit`` in one line.

    Args:
        found: the rows.
        sort: one of `SORTS`.
        limit: None for all.
        width: of the terminal: columns that do not fit are left out, what follows from others first.

    Raises:
        ValueError: another sort, a limit below 1.
        ImportError: rich is not there.
    """
    try:
        from rich.table import Table
    except ImportError as error:
        raise ImportError(f"a table needs rich ({error}): pip install 'fastmlp[train]'") from error
    head, *lines = _fitting(texts(found, sort, limit), width)
    made = Table(box=None, pad_edge=False, padding=(0, markup.GAP, 0, 0), header_style="bold")
    for title in head:
        made.add_column(title, justify="left" if title in TEXTS else "right", no_wrap=True)
    for line in lines:
        made.add_row(*line)
    return made


def text(found: list[Row], sort: str = "time", limit: int | None = 20, width: int | None = None) -> str:
    """The same as plain text."""
    lines = _fitting(texts(found, sort, limit), width)
    return "\n".join(markup.aligned(lines, len(TEXTS)))


#: The columns that are no numbers, the first ones.
TEXTS = ("kernel", "layer")
_HEAD = (
    *(*TEXTS, "time", "share", "launches", "mean", "bytes", "FLOP"),
    *("of copy", "of peak", "floor", "floor/time"),
)
#: What a narrow terminal does without: it follows from others, or is less of a hint.
_DROPPED = ("floor", "bytes", "FLOP", "share", "mean", "launches")


def _fitting(lines: list[tuple[str, ...]], width: int | None) -> list[tuple[str, ...]]:
    """The lines with those columns that ``width`` has room for."""
    columns = {column[0]: column for column in zip(*lines)}

    def excess() -> int:
        return 0 if width is None else sum(max(map(len, c)) + markup.GAP for c in columns.values()) - width

    for name in _DROPPED:
        if excess() > 0:
            del columns[name]
    if excess() > 0:
        longest = max(map(len, columns["kernel"])) - excess()
        columns["kernel"] = tuple(_short(cell, max(longest, 1)) for cell in columns["kernel"])
    return list(zip(*columns.values()))


def texts(found: list[Row], sort: str = "time", limit: int | None = 20) -> list[tuple[str, ...]]:
    """The table's head, and then its rows, as texts."""
    if sort not in SORTS:
        raise ValueError(f"sort: expected one of {', '.join(SORTS)}, got {sort!r}")
    if limit is not None and limit < 1:
        raise ValueError(f"limit: expected 1 at least, got {limit}")
    ordered = sorted(found, key=SORTS[sort], reverse=sort not in ("name", "layer"))
    total = sum(row.seconds for row in found)
    shown, rest = ordered[:limit], ordered[len(ordered[:limit]) :]
    lines: list[tuple[str, ...]] = [_HEAD, *(_cells(row, total) for row in shown)]
    if rest:
        seconds, launches = sum(row.seconds for row in rest), sum(row.launches for row in rest)
        summed = duration(seconds), percent(seconds / total if total else None), f"{launches:,}"
        lines.append((f"({len(rest)} more)", "", *summed, *[""] * (len(_HEAD) - 5)))
    return lines


#: What the table can be sorted by; names go up, numbers down.
SORTS: dict[str, Any] = {
    "time": lambda row: row.seconds,
    "mean": lambda row: row.mean,
    "launches": lambda row: row.launches,
    "bytes": lambda row: row.bytes or 0,
    "flop": lambda row: row.operations or 0,
    # What a faster kernel would save.
    "loss": lambda row: row.seconds - (row.floor or row.mean) * row.launches,
    "name": lambda row: (row.name, row.layer),
    "layer": lambda row: (row.layer, row.name),
}


def _cells(row: Row, total: float) -> tuple[str, ...]:
    return (
        _short(row.name.removeprefix("void ")),
        _short(row.layer.partition("#")[2] or row.layer),  # Optimizer.step#SGD.step
        duration(row.seconds),
        percent(row.seconds / total if total else None),
        f"{row.launches:,}",
        duration(row.mean),
        amount(row.bytes, "B"),
        amount(row.operations or None, ""),
        percent(row.bandwidth),
        percent(row.peak),
        duration(row.floor),
        percent(row.efficiency),
    )


_ROUNDS_UP = 0.9995  # of a unit: three digits of it are a whole one


def _short(name: str, longest: int = 36) -> str:
    """A name that fits on a line: C++ spells templates out."""
    return name if len(name) <= longest else name[: longest - 1] + "…"


def duration(seconds: float | None) -> str:
    """Such as 12.3 µs; nothing for None."""
    if seconds is None:
        return ""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= _ROUNDS_UP * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e9:.0f} ns"


def amount(count: float | None, unit: str) -> str:
    """Such as 1.87 MB, in powers of 1000; nothing for None."""
    if count is None:
        return ""
    for prefix, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= _ROUNDS_UP * size:
            return f"{count / size:.3g} {prefix}{unit}"
    return f"{count:.0f} {unit}".rstrip()


def percent(share: float | None) -> str:
    """Such as 87%; nothing for None."""
    return "" if share is None else f"{100 * share:.0f}%"
