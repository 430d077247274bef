"""Ceilings are measured once, kept, and only ever get better."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fastmlp.costs import ceilings as module
from fastmlp.costs.ceilings import Ceilings, ceilings_of, device_name, measure_ceilings
from fastmlp.costs.floors import Work
from fastmlp.kernels.tiles import cache as files

CPU = torch.device("cpu")
SLOW = Ceilings({1 << 16: 1e9, 1 << 18: 5e9}, {"float32": 1e11}, 2e-6, "2026-05-01 09:30", 0.75)
FAST = Ceilings({1 << 16: 2e9, 1 << 18: 4e9}, {"float32": 3e11}, 1e-6, "2026-05-02 10:00", 0.125)


@pytest.fixture
def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Ceilings]:
    """What will be measured, one after another; nothing is known before."""
    queue = [SLOW, FAST]
    monkeypatch.setenv("FASTMLP_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(module, "_known", {})
    monkeypatch.setattr(module, "measure_ceilings", lambda device, quick: queue.pop(0))
    return queue


def test_once_a_process_and_once_a_machine(measured: list[Ceilings], monkeypatch: pytest.MonkeyPatch) -> None:
    assert ceilings_of(CPU) is ceilings_of(CPU) is SLOW
    monkeypatch.setattr(module, "_known", {})  # another process
    assert ceilings_of(CPU) == SLOW
    assert measured == [FAST]
    torch_threads = torch.get_num_threads()
    monkeypatch.setattr(torch, "get_num_threads", lambda: torch_threads + 1)
    assert ceilings_of(CPU) == FAST


def test_again_keeps_the_best(measured: list[Ceilings], monkeypatch: pytest.MonkeyPatch) -> None:
    ceilings_of(CPU)
    best = Ceilings({1 << 16: 2e9, 1 << 18: 5e9}, {"float32": 3e11}, 1e-6, FAST.taken, FAST.load)
    assert ceilings_of(CPU, again=True) == best
    monkeypatch.setattr(module, "_known", {})
    assert ceilings_of(CPU) == best


@pytest.mark.parametrize("lost", ["taken", "load", "copy", "everything", "zero", "overflow"])
def test_what_does_not_say_when_is_measured_anew(
    lost: str, measured: list[Ceilings], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a file of an earlier version; and one that holds something else."""
    ceilings_of(CPU)
    ((key, entry),) = files.read("ceilings.json").items()
    damaged = [] if lost == "everything" else {name: entry[name] for name in {*entry} - {lost}}
    if lost in ("zero", "overflow"):
        damaged["launch"] = 0 if lost == "zero" else 10**400
    files.add("ceilings.json", {key: damaged})
    monkeypatch.setattr(module, "_known", {})
    assert ceilings_of(CPU) == FAST


def test_they_say_when_and_how_busy() -> None:
    assert SLOW.said == "ceilings measured 2026-05-01 09:30 under a load of 0.75 a core"
    assert (SLOW.doubtful, FAST.doubtful) == (True, False)
    assert Ceilings({}, {}, 0.0).said == "ceilings measured at an unknown time under an unknown load"


def test_a_directory_that_cannot_be_written(
    measured: list[Ceilings], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FASTMLP_CACHE_DIR", "/proc/nowhere")
    assert ceilings_of(CPU) == SLOW


@pytest.mark.deep
def test_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_COPIES", (1 << 16, 1 << 18, 1 << 20))
    found = measure_ceilings("cpu", quick=True)
    assert set(found.copy) == {1 << 16, 1 << 18}
    assert set(found.matmul) == {"float32", "bfloat16"}
    assert 0 < found.launch < 1e-3
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d", found.taken)
    assert found.load is None or found.load >= 0


def test_the_device_has_a_name() -> None:
    assert device_name(CPU)


def test_products_that_would_take_minutes_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU without bfloat16 takes 20 s for one of the largest."""
    sizes = []

    def slow(call: Callable[[], object], *_: object) -> float:
        sizes.append(call.args[0].shape[0])  # type: ignore[attr-defined]
        return 0.2

    monkeypatch.setattr(module, "_best", slow)
    assert module._matmul(torch.bfloat16, "cpu", rounds=1) == 2 * 512**3 / 0.2
    assert sizes == [512]


_REACHED = Ceilings(copy={100: 50.0, 1000: 10.0}, matmul={"float32": 4.0}, launch=0.5)


def test_memory_or_products_and_launches_on_top() -> None:
    assert _REACHED.floor(Work(8, 0, 0, 0), "float32") == 2.0
    assert _REACHED.floor(Work(8, 1000, 0, 1000), "float32") == 100.0
    assert _REACHED.floor(Work(8, 1000, 4, 1000), "float32") == 102.0
    assert _REACHED.floor(Work(0, 10, 1, 10), "int8") == 10 / 50 + 0.5  # no products, no rate needed


@pytest.mark.parametrize(("size", "rate"), [(1, 50.0), (100, 50.0), (101, 10.0), (5000, 10.0)])
def test_bandwidth_is_that_of_a_copy_as_large(size: int, rate: float) -> None:
    """What fits in a cache is copied faster; what is larger than any copy, as the largest."""
    assert _REACHED.bandwidth(size) == rate
