"""Compiles kernels ahead, on all cores: whoever launches them later finds them in Triton's cache on disk.

A task is a function that makes launches. It is called in a process that has no GPU, and its launches are
recorded and compiled, as in the compilation report.
"""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest import mock

import torch
from triton.runtime import driver

from fastmlp.kernels.compile import warmup
from fastmlp.kernels.launch import INTERPRETED, dry_run, num_sms, record_launches
from fastmlp.kernels.tiles import configs

from .. import stub
from ..measure import reason
from .worker import end_with_parent

if TYPE_CHECKING:
    from .worker import Bench

_MOST = 16  # cores: each process imports torch
_BEAT = 5.0  # seconds between two signs of life
_LONGEST = 40.0  # seconds


class Ahead:
    """The processes, while the ``with`` block lasts; none where kernels are interpreted."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._pool = None if INTERPRETED else self._fresh()

    @staticmethod
    def _fresh() -> ProcessPoolExecutor:
        jobs = max(1, min(_MOST, len(os.sched_getaffinity(0))) - 1)  # one core measures
        facts = driver.active.get_current_target(), num_sms(0)
        return ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), _start, facts)

    def __enter__(self) -> Ahead:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            for child in multiprocessing.active_children():  # nobody waits for what it compiles
                child.kill()

    def submit(self, make: Callable[..., object], *arguments: Any) -> Future[None]:
        """Compile what ``make(*arguments)`` launches; both are pickled. The future fails with it."""
        return self._submitted(compiled, make, *arguments)

    def submit_call(self, call: Callable[..., object], *arguments: Any) -> None:
        """Compile what ``call(*arguments)`` launches on CPU tensors, the GPU stubbed; both are pickled."""
        self._submitted(called, call, *arguments)

    def _submitted(self, function: Callable[..., None], *arguments: Any) -> Future[None]:
        if self._pool is None:
            done: Future[None] = Future()
            done.set_result(None)
            return done
        try:
            return self._pool.submit(function, *arguments)
        except BrokenProcessPool:  # a compiler crashed, which ends all of its pool
            self._pool = self._fresh()
            return self._pool.submit(function, *arguments)

    def wait(self, tasks: Sequence[Future[None]], what: str) -> None:
        """Wait for all ``tasks``, but not for ever, nor beyond the stage's time."""
        until = time.time() + min(_LONGEST, self._bench.left() - 1)
        while (open := [task for task in tasks if not task.done()]) and time.time() < until:
            self._bench.note(f"compiling {what}: {len(open)} of {len(tasks)} left")
            concurrent.futures.wait(open, min(_BEAT, until - time.time()))


def compiler_error(task: Future[None]) -> str:
    """Why what a task launches does not compile, as far as that is known, or ""."""
    error = task.exception() if task.done() else None
    # A crash does not say which kernel caused it: each is then compiled where it is launched.
    return "" if error is None or isinstance(error, BrokenProcessPool) else reason(error)


_target: Any = None


def _start(target: Any, sms: int) -> None:
    """Set up a process that has no GPU, but knows how many multiprocessors there would be."""
    global _target
    end_with_parent()
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    known = SimpleNamespace(multi_processor_count=sms)
    with (
        mock.patch.object(torch.cuda, "is_available", return_value=True),
        mock.patch.object(torch.cuda, "get_device_properties", return_value=known),
    ):
        num_sms(0)  # remembers it
    _target = target


def compiled(make: Callable[..., object], *arguments: Any) -> None:
    """Compile every kernel that ``make(*arguments)`` launches, and launch none."""
    configs.forget()  # tiles may have been tuned since the task before
    with dry_run(_target), record_launches() as launches:
        make(*arguments)
        for one in launches:
            warmup(one)


def called(call: Callable[..., object], *arguments: Any) -> None:
    """Call it: Triton compiles as it would, and launches nothing."""
    with stub.gpu(_target):
        call(*arguments)
