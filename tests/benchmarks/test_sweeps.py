"""Where a line ends."""

from __future__ import annotations

import torch

from benchmarks import cases, sweeps
from benchmarks.sweeps import Limits, too_much


def _batch(batch: int) -> cases.Case:
    return cases.training_step(cases.A, batch, torch.float32)


def test_a_line_goes_on_within_its_limits() -> None:
    assert too_much(_batch(1024), None, Limits(2.0, 4 << 30)) is None
    assert too_much(_batch(4096), (_batch(1024), 0.1), Limits(2.0, 4 << 30)) is None


def test_a_line_stops_before_it_takes_too_long() -> None:
    why = too_much(_batch(4096), (_batch(1024), 1.0), Limits(2.0, 4 << 30))
    assert why == "a call would take about 4 s (limit 2)"
    assert too_much(_batch(1025), (_batch(1024), 3.0), Limits(2.0, 4 << 30)) is not None


def test_a_small_calls_time_says_nothing_of_a_large_one() -> None:
    assert too_much(_batch(1 << 12), (_batch(1), 1e-4), Limits(0.1, 4 << 30)) is None


def test_a_line_stops_before_it_needs_too_much() -> None:
    why = too_much(_batch(1 << 20), None, Limits(2.0, 1 << 30))
    assert why is not None
    assert why.endswith("GiB (limit 1)")


def test_sweeps_cover_the_issue() -> None:
    values = {sweep.name: sweep.values for sweep in sweeps.SWEEPS}
    assert (values["batch"][0], values["batch"][-1]) == (1, 1 << 20)
    assert (values["inference"][0], values["inference"][-1]) == (1, 1 << 20)
    assert (values["width"][0], values["width"][-1]) == (16, 16384)
    assert (values["depth"][0], values["depth"][-1]) == (2, 32)
    assert (values["classes"][0], values["classes"][-1]) == (10, 262144)
    for end in ("", "-forward"):
        assert (values[f"mlp-batch{end}"][0], values[f"mlp-batch{end}"][-1]) == (1 << 8, 1 << 21)
        assert (values[f"mlp-width{end}"][0], values[f"mlp-width{end}"][-1]) == (16, 256)
        assert (values[f"mlp-depth{end}"][0], values[f"mlp-depth{end}"][-1]) == (2, 8)
    for sweep in sweeps.SWEEPS:
        assert len(list(sweeps.points(sweep, "cpu", quick=True))) == 3


def test_depth_counts_linear_layers() -> None:
    (depth,) = (sweep for sweep in sweeps.SWEEPS if sweep.name == "depth")
    for layers in (2, 32):
        assert depth.case(layers, torch.float32).work.launches == 2 * layers - 1
