"""The host's time for a call: our modules and losses beside eager, CUDA graphs and ``torch.compile``."""

from __future__ import annotations

from dataclasses import replace

from .. import host
from ..host_cases import CASES, HostCase
from ..measure import Effort
from ..peers import COMPILED, GRAPH, OURS_COMPILED, OURS_GRAPH
from .worker import Bench

_EFFORT = Effort(rounds=21, seconds=0.3)
_REHEARSED = Effort(rounds=3, seconds=0.02)
_COMPILING = (OURS_COMPILED, COMPILED)


def run(bench: Bench) -> None:
    """Calls for which a bound is set come first; what compiles for seconds comes after all the others."""
    todo = sorted(CASES, key=lambda case: case.must is None)
    for compiled in (False, True):
        for case in todo[:2] if bench.toy else todo:
            if compiled and (bench.toy or not _compiles(case)):
                continue
            _measure(bench, case, compiled)


def _compiles(case: HostCase) -> bool:
    return OURS_COMPILED in case.peers


def _measure(bench: Bench, case: HostCase, compiled: bool) -> None:
    """A row without what compiles, and then the same with it in its place."""
    others = (OURS_GRAPH, GRAPH, *((COMPILED,) if compiled else ()))
    case = replace(case, peers=(*case.peers, *others))
    effort = replace(_REHEARSED if bench.toy else _EFFORT, without=() if compiled else _COMPILING)
    if compiled:  # what goes wrong here leaves the row that is there
        make = lambda: {**host.measure(case, bench.device, effort), "part": "host"}  # noqa: E731
        bench.row(f"{case}, compiled", make, part="host, compiled")
    else:
        bench.row(str(case), lambda: host.measure(case, bench.device, effort))
