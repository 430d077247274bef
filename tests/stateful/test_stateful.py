"""Sequential, the losses and TrainStep beside eager torch, whatever was done to them before.

`Beside` looks for states in which ours does something else, `Routes` for what one call keeps for the next.

A few runs here, the same every time. ``make fuzz`` has new ones for ``FASTMLP_DEEP_MINUTES`` a backend.
"""

from __future__ import annotations

import itertools
import os
import sys
import time
import warnings
from collections.abc import Iterator

import pytest
from hypothesis import Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from fastmlp import backends
from fastmlp.backends import onednn
from tests.fuzzing import DEEP, fuzz
from tests.stateful.machine import Beside
from tests.stateful.routes import Routes

MINUTES = float(os.environ.get("FASTMLP_DEEP_MINUTES", 20))
FIRST = int(os.environ.get("FASTMLP_DEEP_SEED", time.time()))  # of the seeds


def small_is_large(patch: pytest.MonkeyPatch) -> None:
    """Small tensors go the ways of large ones, and threads take turns often."""
    patch.setattr("fastmlp.functional.loss._CPU_ELEMENTS", 1)
    patch.setattr("fastmlp.functional.loss._CPU_CLASSES", 1)
    patch.setattr("fastmlp.functional.loss._MANY_ROWS", 4)
    patch.setattr("fastmlp.functional.linear_loss._CPU_ELEMENTS", 1)
    patch.setattr("fastmlp.autograd.tile_sizes._LEAST", 0)
    patch.setattr("fastmlp.backends.onednn.LEAST_WORK", dict.fromkeys(onednn.LEAST_WORK, 1))


@pytest.fixture(params=["auto", "triton"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    small_is_large(monkeypatch)
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    with backends.use(request.param), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield request.param
    sys.setswitchinterval(before)


Machine = type[Beside] | type[Routes]


def run(kind: Machine, examples: int, steps: int, number: int | None = None) -> None:
    """So many runs of at most so many rules; ``number`` seeds new ones."""
    machine = kind if number is None else seed(number)(type(kind.__name__, (kind,), {}))
    options = settings(fuzz(examples), max_examples=examples, stateful_step_count=steps)
    if number is not None:  # what is found is worth the time to make it short
        options = settings(options, phases=(Phase.generate, Phase.shrink), derandomize=False)
    run_state_machine_as_test(machine, settings=options)


FEW = {
    (Beside, "auto"): (25, 12),
    (Beside, "triton"): (5, 8),
    (Routes, "auto"): (12, 12),
    (Routes, "triton"): (5, 8),
}


@pytest.mark.skipif(DEEP, reason="the long run has them")
@pytest.mark.parametrize("kind", [Beside, Routes])
def test_a_few_runs(kind: Machine, backend: str) -> None:
    run(kind, *FEW[kind, backend])


@pytest.mark.skipif(not DEEP, reason="FASTMLP_FUZZ=deep")
@pytest.mark.parametrize("kind", [Beside, Routes])
def test_runs_for_minutes(kind: Machine, backend: str) -> None:
    end = time.monotonic() + 60 * MINUTES
    for number in itertools.count(FIRST):
        if time.monotonic() > end:
            break
        run(kind, 20, 20, number)
        print(
            f"{kind.__name__}, {backend}: seed {number}, {kind.calls:,} calls, of which torch refuses "
            f"{kind.raised:,}",
            flush=True,
        )
