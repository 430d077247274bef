"""What the host does for a call, counted: no clock."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import pytest

from benchmarks.host_cases import CASES
from benchmarks.peers import EAGER, OURS
from tests.processes import output_of

FORWARD, STEP = "net 784-256-10 forward, no grad", "net, loss, backward"
ENGINE = "training step with SGD, TrainStep"
#: Calls from Python, those of C's functions included.
MOST = {FORWARD: 150, STEP: 400, ENGINE: 250}
#: Files, and functions in them, that are for the first call of its kind: Triton's specialization; and the
#: choice of tiles, plan and backend, the recognition of layers.
_SPECIALIZED = ("triton/runtime/jit.py", "triton/compiler/")
_CHOSEN = (
    "fastmlp/kernels/tiles/configs.py",
    "fastmlp/kernels/tiles/decisions.py",
    "fastmlp/costs/choice.py",
    "fastmlp/costs/plans.py",
    "fastmlp/modules/stages.py:stages_of",
    "fastmlp/backends/__init__.py:choose",
    "dataclasses.py",
)
_LABELS = (
    *(case.label for case in CASES if case.must is not None),
    "squared error forward + backward",
    "narrow net, loss, backward",
)
_COUNTED = """
import json, sys
from benchmarks import host
from benchmarks.measure import Effort

counted = {}
for case in host.CASES:
    if case.label not in sys.argv[1:]:
        continue
    with host.gpu("cpu"):
        call = host.calls(case, "cpu", host.COMPILING)[0][host.OURS]  # called once
        counted[case.label] = host.python_calls(call)
row = host.measure(host.CASES[0], "cpu", Effort(rounds=3, seconds=0.01))
print(json.dumps([counted, row]))
"""


@cache
def _counted() -> tuple[dict[str, dict[str, int]], dict[str, Any]]:
    """What a second call of each kind calls, and a measured row: where kernels are compiled, for a stub."""
    return tuple(
        json.loads(output_of(_COUNTED, *_LABELS, ENGINE, timeout=600.0, without=("TRITON_INTERPRET",)))
    )


@pytest.mark.deep
@pytest.mark.parametrize("label", MOST)
def test_a_call_calls_little(label: str) -> None:
    entered = _counted()[0][label]
    assert sum(entered.values()) <= MOST[label], sorted(entered.items(), key=lambda item: -item[1])[:20]


@pytest.mark.few(1)
@pytest.mark.parametrize("label", _LABELS)
def test_a_second_call_neither_specializes_nor_chooses(label: str) -> None:
    assert not _names(label, *_SPECIALIZED, *_CHOSEN)


def test_a_second_step_of_the_engine_specializes_nothing() -> None:
    assert not _names(ENGINE, *_SPECIALIZED)


def _names(label: str, *parts: str) -> list[str]:
    return [name for name in _counted()[0][label] if any(part in name for part in parts)]


def test_a_row_has_times_and_launches() -> None:
    _, row = _counted()
    assert row["launches"] == {OURS: 1, EAGER: 2}
    assert row["floor"] == row["added"] == 2.5e-6
    assert all(
        timing["best"] > row["launches"][peer] * row["added"] for peer, timing in row["seconds"].items()
    )


@pytest.mark.deep
def test_interpreted_kernels_are_no_host_time() -> None:
    code = "from benchmarks import host; print(host.measure(host.CASES[0], 'cpu')['skipped'])"
    assert output_of(code, TRITON_INTERPRET="1") == "TRITON_INTERPRET is set: kernels are not compiled\n"
