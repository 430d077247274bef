"""How much memory a call takes on a CPU, by the allocator's own events."""

from __future__ import annotations

import gc
from collections.abc import Callable

import torch


def peak(call: Callable[[], object]) -> int:
    """The most bytes that are allocated at once, of what ``call`` allocates through torch's allocator.

    What it returns counts; temporaries inside ATen's ops do too. Workspaces of libraries do not: of a matrix
    product's, which some CPUs' oneDNN has, only what is left after it counts.
    """
    gc.collect()  # what is freed meanwhile and was there before would count as less than nothing
    with torch.autograd.profiler.profile(profile_memory=True, use_kineto=True) as profile:
        result = call()
    events = sorted(profile.kineto_results.events(), key=lambda e: e.start_ns())
    held = most = product_ends = 0
    for event in events:
        if event.name() in ("aten::mm", "aten::addmm", "aten::addmm_"):
            product_ends = event.start_ns() + event.duration_ns()
        elif event.name() == "[memory]":
            held += event.nbytes()
            if event.start_ns() > product_ends:
                most = max(most, held)
        elif event.start_ns() > product_ends:
            most = max(most, held)
    del result
    return max(most, held)
