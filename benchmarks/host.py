"""``python -m benchmarks.host``: how long the host takes for a call of ours and for eager PyTorch's.

Host time is what bounds a small net on a GPU. Without a GPU, a stub of one is used (`benchmarks.stub`): our
kernels are compiled for sm_90 and launched into nothing, eager's ops run on one element, and the time is the
calling thread's processor time, plus the same `LAUNCH` for every launch of either. ``--device cuda`` measures
the same calls for real, in blocks between synchronisations; that has not been run yet.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import os
import pstats
import sys
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from fastmlp.profiling.session import exported
from fastmlp.profiling.trace import Trace

from . import peers, tables
from .host_cases import CASES, GROUP, LAUNCH, Call, HostCase, Side
from .machine import describe
from .measure import LEFT_OUT, Effort, Row, new_row, reason
from .peers import COMPILING, LIGER, OURS
from .timing import Run, Timing, interleave

EFFORT = Effort(rounds=51, seconds=4.0)
_BLOCK = 100  # calls between two looks at the clock
_ROOT = Path(__file__).resolve().parent.parent


def problem(device: str) -> str | None:
    """Why nothing can be measured for ``device``, or None."""
    if device == "cuda":
        return None
    try:
        from fastmlp.kernels import launch
    except ImportError as error:
        return f"Triton cannot be imported ({error})"
    return "TRITON_INTERPRET is set: kernels are not compiled" if launch.INTERPRETED else None


def gpu(device: str) -> AbstractContextManager[None]:
    """A GPU for ``device``: a stub, unless a real one is there."""
    if device == "cuda":
        return nullcontext()
    from .stub import gpu as stubbed

    return stubbed()


def calls(
    case: HostCase,
    device: str,
    without: Collection[str] = (),
    say: Callable[[str], None] = lambda what: None,
) -> tuple[dict[str, Call], dict[str, str]]:
    """Each peer's call, already made once, and why others are missing; for use within `gpu`."""
    torch.manual_seed(0)
    found: dict[str, Call] = {}
    missing: dict[str, str] = {}
    for peer in case.peers:
        if peer in without:
            missing[peer] = LEFT_OUT
            continue
        say(peer)
        try:
            call = case.build(Side(peer, device))
            if peer in (peers.GRAPH, peers.OURS_GRAPH):
                call = peers.graphed(call, device)
            call()  # compiles
        except Exception as error:
            if peer != LIGER and not isinstance(error, peers.MissingPeerError):
                raise
            missing[peer] = reason(error)
        else:
            found[peer] = call
    return found, missing


def measure(
    case: HostCase, device: str, effort: Effort = EFFORT, say: Callable[[str], None] = lambda what: None
) -> Row:
    """Time the peers' calls in turns, and count what each launches.

    A row that cannot be measured here is skipped, with the reason. ``say`` is told which peer comes next.
    """
    group = GROUP if device == "cuda" else f"{GROUP}, GPU stubbed"
    row = new_row(group, case.label, "float32", key=str(case), must=case.must, stretch=case.stretch)
    unable = problem(device)
    if unable is not None:
        return row | {"skipped": unable}
    with gpu(device):
        found, missing = calls(case, device, effort.without, say)
        if OURS not in found:  # it needs the package that the row is about
            return row | {"skipped": missing[OURS]}
        launches = {peer: launched(call, device) for peer, call in found.items()}
        entered = python_calls(found[OURS]).total()
        runs = {peer: Run(call) if device == "cuda" else _clocked(call) for peer, call in found.items()}
        timings = interleave(runs, device, effort.rounds, effort.seconds)
    if device == "cpu":
        timings = {peer: _later(timing, launches[peer] * LAUNCH) for peer, timing in timings.items()}
    return row | {
        "floor": launches[OURS] * LAUNCH,  # if Python took no time
        "seconds": {peer: asdict(timing) for peer, timing in timings.items()},
        "missing": missing,
        "launches": launches,
        "added": 0.0 if device == "cuda" else LAUNCH,  # seconds a launch, in those above
        "python_calls": entered,
    }


def _clocked(call: Call) -> Run:
    """By this thread's processor time, which leaves out whatever else runs on the machine."""

    def block() -> float:
        began = time.thread_time()
        for _ in range(_BLOCK):
            call()
        return time.thread_time() - began

    return Run(block, steps=_BLOCK, clocked=True)


def _later(timing: Timing, seconds: float) -> Timing:
    ends = {end: getattr(timing, end) + seconds for end in ("median", "low", "high", "best")}
    return replace(timing, **ends)


def launched(call: Call, device: str) -> int:
    """How many kernels a call launches, Triton's and those of torch's ops.

    Not counted by `fastmlp.profile`, under which the engine does not remember a model.
    """
    with torch.profiler.profile(record_shapes=True) as profiler:
        before = _stubbed(device)
        call()
        if device == "cuda":
            torch.cuda.synchronize()
    kernels = Trace(json.loads(exported(profiler))["traceEvents"]).kernels
    return len(kernels) + _stubbed(device) - before


def _stubbed(device: str) -> int:
    if device == "cuda":
        return 0
    from . import stub

    return stub.launches()


def python_calls(call: Call) -> Counter[str]:
    """What a call calls from Python, and how often: ``path:function``, C functions by their names."""
    found: Counter[str] = Counter()

    def note(frame: Any, event: str, called: Any) -> None:
        if event == "call":
            found[f"{_shown(frame.f_code.co_filename)}:{frame.f_code.co_name}"] += 1
        elif event == "c_call" and called is not sys.setprofile:
            found[called.__qualname__] += 1

    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(None)
    return found


def _shown(path: str) -> str:
    """A file's path, relative to where its package is installed."""
    if path.startswith(str(_ROOT)):
        return os.path.relpath(path, _ROOT)
    return path.rpartition("site-packages/")[2]


def main(argv: Sequence[str] | None = None) -> int:
    """The host's time for a call, ours beside eager PyTorch's."""
    parser = argparse.ArgumentParser("python -m benchmarks.host", description=main.__doc__)
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu", help="cpu: with the GPU stubbed; cuda: for real"
    )
    parser.add_argument("--match", default="", help="only rows with this in their name")
    parser.add_argument("--rounds", type=int, default=EFFORT.rounds, help="interleaved turns, at least 3")
    parser.add_argument("--quick", action="store_true", help="leave out torch.compile")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there too")
    parser.add_argument(
        "--profile", action="store_true", help="instead of times: what our call calls, and for how long"
    )
    asked = parser.parse_args(argv)
    unable = problem(asked.device)
    if unable is not None:
        parser.error(f"--device {asked.device}: {unable}")
    if asked.rounds < 3:
        parser.error(f"--rounds {asked.rounds}: expected 3 at least")
    found = [case for case in CASES if asked.match in str(case)]
    if not found:
        parser.error(f"--match {asked.match}: there is no such row")
    if asked.profile:
        for case in found:
            _profile(case, asked.device)
        return 0
    effort = replace(EFFORT, rounds=asked.rounds, without=COMPILING if asked.quick else ())
    report: dict[str, Any] = {"machine": describe(asked.device), "rows": []}
    for case in found:
        row = measure(case, asked.device, effort)
        report["rows"].append(row)
        print(tables.line(row), file=sys.stderr, flush=True)
    rows = report["rows"]
    print(f"{tables.machine(report['machine'])}\n\n{tables.host_meaning(rows)}\n\n{tables.host(rows)}")
    if asked.json is not None:
        asked.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0


def _profile(case: HostCase, device: str, times: int = 500) -> None:
    """By function: how often a call enters it, and its own time under cProfile."""
    with gpu(device):
        call = calls(replace(case, peers=(OURS,)), device)[0][OURS]
        call()
        entered = python_calls(call)
        profiler = cProfile.Profile()
        profiler.enable()
        for _ in range(times):
            call()
        profiler.disable()
    print(f"{case.label}: {entered.total()} calls from Python\n{'calls':>7} {'own µs':>7} {'all µs':>7}")
    stats: dict[Any, Any] = pstats.Stats(profiler).stats  # type: ignore[attr-defined]
    for (path, line, name), (_, count, own, whole, _) in sorted(stats.items(), key=lambda item: -item[1][2])[
        :50
    ]:
        where = f"{_shown(path)}:{line} " if line else ""
        print(f"{count / times:7.1f} {own / times * 1e6:7.2f} {whole / times * 1e6:7.2f} {where}{name}")
    print()


if __name__ == "__main__":
    sys.exit(main())
