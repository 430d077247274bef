"""The host's time for a call: our modules and losses beside eager, CUDA graphs and ``torch.compile``."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from functools import partial

from .. import host
from ..host_cases import CASES, HostCase, Side
from ..measure import Effort
from ..peers import COMPILED, GRAPH, OURS, OURS_COMPILED, OURS_GRAPH
from .ahead import Ahead
from .worker import Bench

_EFFORT = Effort(rounds=21, seconds=0.3)
_REHEARSED = Effort(rounds=3, seconds=0.02)
_COMPILING = (OURS_COMPILED, COMPILED)


def run(bench: Bench) -> None:
    """Calls that have a bound come first; peers that compile for seconds come after all others."""
    todo = sorted(CASES, key=lambda case: case.must is None)
    if bench.toy:
        todo = todo[:2]
    with nullcontext() if bench.toy else Ahead(bench) as ahead:
        for place, case in enumerate(CASES):
            if ahead is not None and case in todo:
                ahead.submit_call(_call, place)
        for case in todo:
            _measure(bench, case, compiled=False)
    for case in todo:
        if case.must is not None and not bench.toy:
            _measure(bench, case, compiled=True)


def _call(place: int) -> None:
    """Call ours of one row, with the sizes that a GPU gets, so that its kernels are compiled."""
    CASES[place].build(Side(OURS, "cpu"))()


def _measure(bench: Bench, case: HostCase, compiled: bool) -> None:
    """A row without the peers that compile; if ``compiled``, one with them that takes its place."""
    others = (OURS_GRAPH, GRAPH, *((COMPILED,) if compiled else ()))
    full = replace(case, peers=(*case.peers, *others))
    effort = replace(_REHEARSED if bench.toy else _EFFORT, without=() if compiled else _COMPILING)
    make = partial(host.measure, full, bench.device, effort, lambda peer: bench.note(f"{case}: {peer}"))
    if compiled:  # what goes wrong here leaves the row that is there
        bench.row(f"{case}, compiled", lambda: make() | {"part": "host"}, part="host, compiled")
    else:
        bench.row(str(case), make)
