"""Operations, bytes and launches, against what can be counted by hand."""

from __future__ import annotations

from dataclasses import replace

import torch

from fastmlp.costs import floors

_FP32, _BF16 = torch.float32, torch.bfloat16


def test_a_layer() -> None:
    work = floors.linear(2, 3, 5, _FP32)
    assert work.operations == 2 * 2 * 3 * 5
    assert work.bytes == 4 * (2 * 3 + 5 * 3 + 5 + 2 * 5)
    assert work.launches == 1
    both = floors.linear(2, 3, 5, _FP32, backward=True)
    assert both.operations == 3 * work.operations
    assert both.launches == 2


def test_the_textbook_step_is_what_the_design_counts() -> None:
    """0.21 GFLOP, about 3 MB and three launches."""
    work = floors.training_step((784, 256, 10), 256, _BF16, torch.uint8)
    # Forward and dW of both layers, dX of the second alone.
    assert work.operations == 2 * 256 * (2 * 784 * 256 + 3 * 256 * 10)
    assert 2e6 < work.bytes < 5e6
    assert work.launches == 3


def test_cross_entropy_reads_twice_and_writes_once() -> None:
    work = floors.cross_entropy(4096, 128256, _BF16)
    assert round(work.bytes / 1e9, 2) == 3.15  # the design's floor
    assert work.operations == 0


def test_bfloat16_halves_what_is_not_a_parameter() -> None:
    wide, half = (floors.inference((784, 256, 10), 4096, dtype) for dtype in (_FP32, _BF16))
    assert half.bytes * 2 == wide.bytes
    assert half.operations == wide.operations
    assert wide.launches == 2


def test_an_epoch_has_a_short_last_step() -> None:
    widths = (784, 256, 10)
    work = floors.epoch(widths, 256, 60_000, _FP32, torch.uint8)
    full, tail = (floors.training_step(widths, n, _FP32, torch.uint8) for n in (256, 96))
    assert work.operations == 234 * full.operations + tail.operations
    assert work.launches == 235 * 3
    even = floors.epoch(widths, 256, 512, _FP32, torch.uint8)
    assert even.operations == 2 * full.operations
    assert even.launches == 6


def test_a_deeper_net_needs_two_launches_a_layer() -> None:
    assert [floors.training_step((8,) * (n + 1), 4, _FP32).launches for n in (1, 2, 5)] == [1, 3, 9]


def test_a_head_does_not_write_its_logits() -> None:
    rows, features, classes = 4096, 64, 128256
    logits = floors.cross_entropy(rows, classes, _BF16).bytes
    assert floors.linear_cross_entropy(rows, features, classes, _BF16).bytes < logits / 10


def test_a_regression_reads_a_float_for_each_output() -> None:
    step, other = (floors.training_step((8, 8, 5), 4, _FP32, regression=r) for r in (False, True))
    assert other.bytes - step.bytes == 4 * (5 * 4 - 8)
    assert replace(other, bytes=0) == replace(step, bytes=0)
