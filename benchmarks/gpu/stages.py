"""The stages: how long each may take, and what it answers."""

from __future__ import annotations

from typing import NamedTuple


class Stage(NamedTuple):
    """One of them; its module has the same name."""

    name: str
    seconds: float  # its limit, from when its process is ready; the last one takes what is left
    patience: float  # seconds without a word after which it is said to hang
    answers: str


STAGES = (
    Stage("facts", 10, 30, "what this machine is, and what it reaches"),
    Stage("smoke", 90, 45, "every kernel family against float64"),
    Stage("host", 20, 60, "the host's time for a call"),
    Stage("engines", 60, 30, "the same training by every engine"),
    Stage("headlines", 150, 60, "times beside every peer"),
    Stage("tune", 120, 60, "tiles, and ours or cuBLAS"),
    Stage("tests", float("inf"), 120, "the test suite, natively"),
)
NAMES = tuple(stage.name for stage in STAGES)
#: Seconds that a process may take until it is ready: torch's first import from a cold disk, CUDA's start.
START = 90.0
