"""``pytest benchmarks/ --benchmark-only``: every case by every peer, on the GPU if there is one.

An id is the case and the peer; ``-k "not heavy and not max-autotune"`` leaves out what takes long.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from . import host, whole_net
from .cases import Case, cases
from .host_cases import CASES, HostCase
from .measure import reason
from .peers import COMPILED, EAGER, JAX, LIGER, OURS, OURS_COMPILED, OURS_MODULES
from .sweeps import LIMITS
from .timing import finish

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
_PEERS = (OURS, OURS_MODULES, EAGER, COMPILED, JAX)  # the report has them all


def _id(value: Case | str) -> str:
    return value if isinstance(value, str) else f"{value}{', heavy' if value.heavy else ''}"


@pytest.mark.parametrize("peer", _PEERS)
@pytest.mark.parametrize("case", [*cases(DEVICE), *whole_net.cases(DEVICE, LIMITS[DEVICE].seconds)], ids=_id)
def test_case(benchmark: Any, case: Case, peer: str) -> None:
    benchmark.group = str(case)
    factories = case.on(DEVICE)
    if peer not in factories:
        pytest.skip(f"{peer} does not do this")
    try:
        run = factories[peer]()
        run.call()  # compiles
    except Exception as error:
        if peer != OURS:
            pytest.skip(f"{peer}: {reason(error)}")
        raise

    def measured() -> None:
        run.call()
        finish(run, DEVICE)

    benchmark.extra_info["steps in a round"] = run.steps
    benchmark.pedantic(measured, rounds=5 if case.heavy else 30, warmup_rounds=1)


@pytest.mark.parametrize("peer", [OURS, OURS_COMPILED, EAGER, LIGER])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_host_time(benchmark: Any, case: HostCase, peer: str) -> None:
    """Without what a launch takes: where there is no GPU it is stubbed (`benchmarks.host`)."""
    benchmark.group = str(case)
    if peer not in case.peers:
        pytest.skip(f"{peer} does not do this")
    unable = host.problem(DEVICE)
    if unable is not None:
        pytest.skip(unable)
    with host.gpu(DEVICE):
        found, missing = host.calls(replace(case, peers=(peer,)), DEVICE)
        if peer not in found:
            pytest.skip(f"{peer}: {missing[peer]}")
        benchmark.extra_info["launches"] = host.launched(found[peer], DEVICE)
        benchmark.pedantic(found[peer], rounds=30, iterations=50, warmup_rounds=1)
