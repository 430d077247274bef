"""How much memory a call takes on a CPU, by the allocator's own events."""

from __future__ import annotations

import gc
from collections.abc import Callable

import torch


def peak(call: Callable[[], object]) -> int:
    """The most bytes that are allocated at once, of what ``call`` allocates through torch's allocator.

    What it returns counts; temporaries inside ATen's ops do too, workspaces of libraries do not.
    """
    gc.collect()  # what is freed meanwhile and was there before would count as less than nothing
    with torch.autograd.profiler.profile(profile_memory=True, use_kineto=True) as profile:
        result = call()
    events = [e for e in profile.kineto_results.events() if e.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    del result
    return most
