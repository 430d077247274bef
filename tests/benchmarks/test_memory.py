"""The most memory that a run takes."""

from __future__ import annotations

import pytest
import torch

from benchmarks import memory
from benchmarks.timing import Run
from fastmlp.backends import pages


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
