"""The floor's formula."""

from __future__ import annotations

import pytest
import torch

from benchmarks import memory
from benchmarks.timing import Run
from fastmlp.backends import pages
from fastmlp.costs.ceilings import Ceilings
from fastmlp.costs.floors import Work

_CEILINGS = Ceilings(copy={100: 50.0, 1000: 10.0}, matmul={"float32": 4.0}, launch=0.5)


def test_memory_or_products_and_launches_on_top() -> None:
    assert _CEILINGS.floor(Work(8, 0, 0, 0), "float32") == 2.0
    assert _CEILINGS.floor(Work(8, 1000, 0, 1000), "float32") == 100.0
    assert _CEILINGS.floor(Work(8, 1000, 4, 1000), "float32") == 102.0
    assert _CEILINGS.floor(Work(0, 10, 1, 10), "int8") == 10 / 50 + 0.5  # no products, no rate needed


@pytest.mark.parametrize(("size", "rate"), [(1, 50.0), (100, 50.0), (101, 10.0), (5000, 10.0)])
def test_bandwidth_is_that_of_a_copy_as_large(size: int, rate: float) -> None:
    """What fits in a cache is copied faster; what is larger than any copy, as the largest."""
    assert _CEILINGS.bandwidth(size) == rate


def test_peak_memory_is_what_a_run_takes() -> None:
    def factory() -> Run:
        # More than malloc ever takes out of memory that it has kept: fresh pages, whatever ran before.
        kept = torch.ones(64 << 20, dtype=torch.uint8)
        return Run(lambda: kept + 1)

    found = memory.peak(factory, "cpu")
    if found is None:
        pytest.skip("no /proc/self/clear_refs here")
    assert 120 << 20 < found < 320 << 20


def test_peak_memory_counts_what_was_kept_for_it() -> None:
    like = torch.empty(64 << 20, dtype=torch.uint8)
    peaks = [memory.peak(lambda: Run(lambda: pages.large_like(like).fill_(1)), "cpu") for _ in range(2)]
    pages.release()
    if None in peaks:
        pytest.skip("no /proc/self/clear_refs here")
    assert all(60 << 20 < peak < 100 << 20 for peak in peaks if peak is not None)
