"""The table's arithmetic and its looks."""

from __future__ import annotations

import dataclasses
import json

import pytest

from fastmlp.costs.floors import Work
from fastmlp.profiling.rows import SORTS, Row, amount, duration, percent, rows, table, text
from fastmlp.profiling.trace import Kernel
from tests.reached import CEILINGS


def kernel(name: str, seconds: float, work: Work | None, layer: str = "0", dtype: str = "float32") -> Kernel:
    return Kernel(name, layer, 0.0, seconds, work, dtype)


def test_a_row() -> None:
    """Copies reach 1 GB/s, products 1 TFLOP/s, a launch 1 µs."""
    work = Work(4_000_000, 3_000, 1, 3_000)  # 4 µs of products, 3 µs of memory
    (row,) = rows([kernel("k", 4e-6, work), kernel("k", 12e-6, work)], CEILINGS)
    assert (row.launches, row.bytes, row.operations) == (2, 3_000, 4_000_000)
    assert row.seconds == pytest.approx(16e-6)
    assert row.mean == pytest.approx(8e-6)
    assert row.bandwidth == pytest.approx(3 / 8)
    assert row.peak == pytest.approx(4 / 8)
    assert row.floor == pytest.approx(5e-6)
    assert row.efficiency == pytest.approx(5 / 8)


@pytest.mark.parametrize(
    ("work", "floor"),
    [(Work(0, 5_000, 1, 5_000), 6e-6), (Work(9_000_000, 10, 1, 10), 10e-6), (Work(0, 0, 1, 0), 1e-6)],
    ids=["memory", "products", "launch"],
)
def test_the_floor_is_that_of_the_ceilings(work: Work, floor: float) -> None:
    (row,) = rows([kernel("k", 1e-3, work)], CEILINGS)
    assert row.floor == pytest.approx(floor)
    assert row.floor == CEILINGS.floor(work, "float32")
    assert (row.peak is None) == (work.operations == 0)


def test_what_is_not_known_is_empty() -> None:
    some = rows([kernel("k", 1e-3, Work(1, 1, 1, 1)), kernel("k", 1e-3, None)], CEILINGS)[0]
    assert (some.bytes, some.operations, some.floor, some.efficiency) == (None, None, None, None)
    other = rows([kernel("k", 1e-3, Work(1000, 8, 1, 8), dtype="float64")], CEILINGS)[0]
    assert (other.bytes, other.peak, other.floor) == (8, None, None)  # no peak of float64 is measured


def test_a_row_for_each_layer_the_longest_first() -> None:
    found = rows(
        [kernel("k", 1.0, None, "0"), kernel("k", 3.0, None, "1"), kernel("j", 2.0, None, "0")], CEILINGS
    )
    assert [(row.name, row.layer) for row in found] == [("k", "1"), ("j", "0"), ("k", "0")]


FOUND = rows(
    [
        kernel("linear_act_kernel", 8e-6, Work(4_000_000, 3_000, 1, 3_000)),
        kernel("aten::cat", 2e-6, None, "Optimizer.step#SGD.step"),
        kernel("void at::native::" + "x" * 100, 1e-6, Work(0, 100, 1, 100), "2"),
    ],
    CEILINGS,
)


def test_text() -> None:
    lines = [" ".join(line.split()) for line in text(FOUND).splitlines()]
    assert lines[0] == "kernel layer time share launches mean bytes FLOP of copy of peak floor floor/time"
    assert lines[1] == "linear_act_kernel 0 8 µs 73% 1 8 µs 3 kB 4 M 38% 50% 5 µs 62%"
    assert lines[2] == "aten::cat SGD.step 2 µs 18% 1 2 µs"
    assert lines[3].startswith("at::native::x")
    assert max(map(len, text(FOUND).splitlines())) < 140
    assert " ".join(text(FOUND, limit=1).splitlines()[2].split()) == "(2 more) 3 µs 27% 2"


def test_a_narrow_terminal_has_fewer_columns() -> None:
    from rich.console import Console

    for width in (80, 100, 300):
        console = Console(width=width, file=None, record=True, quiet=False, force_terminal=False)
        with console.capture() as capture:
            console.print(table(FOUND, width=width))
        lines = capture.get().splitlines()
        assert len(lines) == 4
        assert max(map(len, lines)) <= width
        assert ("bytes" in lines[0]) == (width == 300)
        assert "of copy" in lines[0]
        assert "floor/time" in lines[0]


@pytest.mark.parametrize("sort", SORTS)
def test_sorted(sort: str) -> None:
    names = [line.split()[0] for line in text(FOUND, sort).splitlines()[1:]]
    if sort in ("name", "layer"):
        assert names[0] == {"name": "aten::cat", "layer": "linear_act_kernel"}[sort]
    elif sort != "launches":
        assert names[0] == "linear_act_kernel"


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match=r"sort: expected one of time, .* got 'speed'"):
        text(FOUND, "speed")
    with pytest.raises(ValueError, match="limit: expected 1 at least, got 0"):
        table(FOUND, limit=0)


def test_json() -> None:
    plain = json.loads(json.dumps(FOUND[0].to_json()))
    assert plain["mean"] == FOUND[0].mean
    assert Row(**{field.name: plain[field.name] for field in dataclasses.fields(Row)}) == FOUND[0]


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (2.5, "2.5 s"),
        (0.9999, "1 s"),
        (12.34e-3, "12.3 ms"),
        (999e-6, "999 µs"),
        (44e-9, "44 ns"),
        (0, "0 ns"),
        (None, ""),
    ],
)
def test_durations(seconds: float | None, said: str) -> None:
    assert duration(seconds) == said


def test_amounts() -> None:
    assert [amount(n, "B") for n in (0, 999, 1000, 1.87e6, 2e12, None)] == [
        "0 B",
        "999 B",
        "1 kB",
        "1.87 MB",
        "2 TB",
        "",
    ]
    assert (percent(0.876), percent(None)) == ("88%", "")
