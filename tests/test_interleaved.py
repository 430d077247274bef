"""What the interleaved interpreter finds, and what it must not find, in kernels of a few lines."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
import triton
import triton.language as tl

from tests.interleaved import StuckError
from tests.ordered import RaceError

Interleaved = Callable[[int], AbstractContextManager[None]]


@triton.jit
def everybody(memory, lock):
    tl.store(memory, 1)


@triton.jit
def late_readers(memory, lock):
    if tl.program_id(0) == 0:
        tl.store(memory, 1)
    else:
        tl.load(memory)


@triton.jit
def own_threads(memory, lock):
    mine = memory + tl.program_id(0)
    tl.store(mine, 1)
    tl.store(mine, tl.load(mine) + 1)


@triton.jit
def relaxed_lock(memory, lock):
    while tl.atomic_cas(lock, 0, 1, sem="relaxed") != 0:
        pass
    tl.store(memory, tl.load(memory) + 1)
    tl.debug_barrier()
    tl.atomic_xchg(lock, 0, sem="release")


@triton.jit
def lock_of_one_thread(memory, lock):
    while tl.atomic_cas(lock, 0, 1, sem="acquire") != 0:
        pass
    tl.store(memory, tl.load(memory) + 1)
    tl.atomic_xchg(lock, 0, sem="release")


@triton.jit
def overwritten_lock(memory, lock):
    if tl.program_id(0) == 0:
        tl.store(memory, 1)
        tl.debug_barrier()
        tl.atomic_xchg(lock, 1, sem="release")
        tl.debug_barrier()
        tl.store(lock, 2)
    else:
        while tl.load(lock, volatile=True) != 2:
            pass
        tl.atomic_add(lock, 0, sem="acquire")
        tl.debug_barrier()
        tl.store(memory, 2)


@triton.jit
def nobody_opens(memory, lock):
    while tl.load(lock, volatile=True) == 0:
        pass


@triton.jit
def nobody_unlocks(memory, lock):
    while tl.atomic_cas(lock, 0, 1) != 0:
        pass


@triton.jit
def own_places(memory, lock):
    mine = memory + tl.program_id(0)
    for _ in range(50):  # the same again and again, but not for ever
        tl.load(mine)
    tl.store(mine, 1)
    tl.debug_barrier()
    tl.store(mine, tl.load(mine) + 1)


@triton.jit
def counted(memory, lock):
    tl.atomic_add(memory, 1, sem="relaxed")


@triton.jit
def locked(memory, lock):
    while tl.atomic_cas(lock, 0, 1, sem="acquire") != 0:
        pass
    tl.store(memory, tl.load(memory) + 1)
    tl.debug_barrier()
    tl.atomic_xchg(lock, 0, sem="release")


@triton.jit
def last_one_reads(memory, lock):
    tl.store(memory + 1 + tl.program_id(0), 1)
    tl.debug_barrier()
    if tl.atomic_add(lock, 1, sem="acq_rel") == tl.num_programs(0) - 1:
        tl.store(memory, tl.sum(tl.load(memory + 1 + tl.arange(0, 4)), 0))


def run(kernel: Any) -> list[int]:
    memory, lock = torch.zeros(5, dtype=torch.int32), torch.zeros((), dtype=torch.int32)
    kernel[(4,)](memory, lock)
    return memory.tolist()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    "kernel",
    [everybody, late_readers, own_threads, relaxed_lock, lock_of_one_thread, overwritten_lock],
    ids=lambda kernel: kernel.__name__,
)
def test_races(kernel: Any, seed: int, interleaved: Interleaved) -> None:
    """Both lines are named."""
    with (
        pytest.raises(RaceError, match=r"test_interleaved\.py:\d+.*test_interleaved\.py:\d+"),
        interleaved(seed),
    ):
        run(kernel)


@pytest.mark.parametrize("kernel", [nobody_opens, nobody_unlocks], ids=lambda kernel: kernel.__name__)
def test_programs_that_wait_for_ever(kernel: Any, interleaved: Interleaved) -> None:
    with pytest.raises(StuckError, match=r"wait for ever, one at test_interleaved\.py:\d+"), interleaved(0):
        run(kernel)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("kernel", "result"),
    [
        (own_places, [2, 2, 2, 2, 0]),
        (counted, [4, 0, 0, 0, 0]),
        (locked, [4, 0, 0, 0, 0]),
        (last_one_reads, [4, 1, 1, 1, 1]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_is_ordered(kernel: Any, result: list[int], seed: int, interleaved: Interleaved) -> None:
    with interleaved(seed):
        assert run(kernel) == result


def test_a_program_that_fails(interleaved: Interleaved) -> None:
    """Its error is the launch's; the interpreter is as it was."""

    @triton.jit
    def fails(memory, lock):
        if tl.program_id(0) == 2:
            tl.static_assert(False, "no")
        tl.store(memory + tl.program_id(0), 1)

    with pytest.raises(Exception, match="no"), interleaved(0):
        run(fails)
    assert run(counted) == [4, 0, 0, 0, 0]


def test_orders_differ_by_seed(interleaved: Interleaved) -> None:
    @triton.jit
    def in_turn(memory, lock):
        tl.store(memory + tl.atomic_add(lock, 1, sem="relaxed"), tl.program_id(0))

    orders = set()
    for seed in range(12):
        found = []
        for _ in range(2):
            with interleaved(seed):
                found.append(tuple(run(in_turn)))
        assert found[0] == found[1]
        orders.add(found[0])
    assert len(orders) > 4
