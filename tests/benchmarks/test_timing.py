"""Turns, blocks and clocks."""

from __future__ import annotations

import time

from benchmarks.timing import Run, interleave


def test_interleaved_timings_are_ordered() -> None:
    slow = Run(lambda: time.sleep(2e-3))
    timings = interleave({"fast": Run(lambda: None), "slow": slow}, "cpu", rounds=5)
    assert timings["slow"].median > 1e-3 > timings["fast"].median
    assert timings["slow"].low <= timings["slow"].median <= timings["slow"].high
    assert timings["slow"].rounds == 5


def test_a_slow_runs_first_call_counts() -> None:
    timings = interleave({"slow": Run(lambda: time.sleep(0.21))}, "cpu", rounds=9, seconds=0.0)
    assert timings["slow"].rounds == 3


def test_a_call_of_many_steps_is_divided() -> None:
    timings = interleave({"ten": Run(lambda: time.sleep(5e-3), steps=10)}, "cpu", rounds=3)
    assert 4e-4 < timings["ten"].median < 2e-3


def test_a_run_with_a_clock_of_its_own_is_believed() -> None:
    assert interleave({"own": Run(lambda: 7.0, clocked=True)}, "cpu", rounds=3)["own"].median == 7.0


def test_no_turn_starts_after_the_time_is_over() -> None:
    timing = interleave({"slow": Run(lambda: time.sleep(5e-3))}, "cpu", rounds=1000, seconds=0.02)
    assert 3 <= timing["slow"].rounds < 20


def test_what_runs_behind_the_back_is_waited_for() -> None:
    waited: list[int] = []
    interleave({"queued": Run(lambda: None, wait=lambda: waited.append(1))}, "cpu", rounds=3)
    assert len(waited) >= 6


def test_peers_take_turns_at_being_first() -> None:
    """Once there and once back: none always follows the same one."""
    order: list[str] = []
    slow = 0.21  # seconds: a call is a block, and warms nothing up
    runs = {name: Run(lambda name=name: order.append(name) or slow, clocked=True) for name in "ab"}
    interleave(runs, "cpu", rounds=3)
    assert "".join(order) == "ab" + "ab" + "ba" + "ab"
