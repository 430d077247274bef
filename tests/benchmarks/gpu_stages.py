"""Stages that misbehave, for the conductor's tests: `tests.benchmarks.gpu_stages:NAME`."""

from __future__ import annotations

import os
import sys
import time

from benchmarks.gpu.worker import Bench
from benchmarks.measure import Row, new_row


def _row(**more: object) -> Row:
    return new_row("a stage", **more)


def raises(bench: Bench) -> None:
    """In a row, between two good ones; the last one says that its result is wrong."""
    bench.row("before", _row)
    bench.row("raises", lambda: _row(value=1 // 0))
    bench.row("wrong", lambda: _row(error="off", worst={"what": "dW", "error": 1.0, "allowed": 0.5}))
    bench.row("after", _row)
    bench.tell(told={"a": 1})
    bench.keep("beside.json", "{}")


def aborts(bench: Bench) -> None:
    """By SIGABRT in one row, by its exit in another."""
    bench.row("before", _row)
    bench.row("aborts", lambda: os.abort())
    bench.row("leaves", lambda: os._exit(7))
    bench.row("after", _row)


def hangs(bench: Bench) -> None:
    """Where no exception reaches it."""

    def hang() -> Row:
        bench.note("launching epoch_kernel")
        time.sleep(60)
        return _row()

    bench.row("hangs", hang)
    bench.row("after", _row)


def outside(bench: Bench) -> None:
    """Dies with no row under way."""
    bench.row("before", _row)
    print("what it said last")
    sys.exit(9)


def slow(bench: Bench) -> None:
    """Five rows of a third of a second."""

    def sleep() -> Row:
        time.sleep(0.3)
        return _row(at=time.time(), by=os.getpid())

    for i in range(5):
        bench.row(f"slow {i}", sleep)


def fine(bench: Bench) -> None:
    """All is well."""
    bench.row("fine", _row)
