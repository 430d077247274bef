"""``pytest benchmarks/ --benchmark-only``: every case by every peer, on the GPU if there is one."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks.cases import PEERS, Plan, plans
from benchmarks.timing import synchronize

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize("plan", list(plans(DEVICE)), ids=str)
def test_case(benchmark: Any, plan: Plan, peer: str) -> None:
    benchmark.group = str(plan)
    try:
        run = plan.on(DEVICE).runs[peer]
        run()  # compiles
    except Exception as error:
        if peer == "torch.compile":
            pytest.skip(f"torch.compile cannot run here: {str(error).splitlines()[0]}")
        raise
    synchronize(DEVICE)

    def measured() -> None:
        run()
        synchronize(DEVICE)

    benchmark.pedantic(measured, rounds=30, warmup_rounds=3)
