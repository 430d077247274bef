"""What a grid's programs do to each other's memory, and whether anything orders it: vector clocks.

A race is two programs at one address, of which one writes plainly, with no chain of barriers and atomics from
the one access to the other. It is one whatever values come out. As on a GPU

- one thread makes a program's atomics; its others come before or behind them only by `tl.debug_barrier`, or
  behind by the atomic's result where that is used, since the compiler broadcasts it with a barrier;
- a program's threads see what others of them stored only after such a barrier;
- an atomic acquires what those before it at its address released; a relaxed one, a volatile load and a plain
  access order nothing, and a plain store ends what was released there.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

#: What an access must come behind, if another made it. Volatile loads are polls.
_CONFLICTS = {
    "read": ("write", "atomic"),
    "poll": ("write",),
    "atomic": ("write", "read"),
    "write": ("write", "atomic", "read", "poll"),
}


#: A line of a device function, that of its call, and so on up to the kernel.
Place = list[tuple[str, int]]


def said(place: Place) -> str:
    return " < ".join(f"{Path(file).name}:{line}" for file, line in place)


class RaceError(AssertionError):
    """Two programs touch one address, and nothing orders them."""


class Memory:
    """Every address that so many programs touch, and what each access of theirs comes behind.

    A program is two agents: its threads, and the one of them that makes its atomics.
    """

    def __init__(self, programs: int) -> None:
        agents = 2 * programs
        #: Of each agent: how many accesses of every agent come before its next one.
        self._clocks = np.zeros((agents, agents), np.int32)
        #: Of each agent: where its accesses were made.
        self._places: list[list[Place]] = [[] for _ in range(agents)]
        self._cells: defaultdict[int, int] = defaultdict(itertools.count().__next__)  # by address
        #: By kind of access, for each cell and agent: the number of its last one.
        self._last = {kind: np.zeros((1024, agents), np.int32) for kind in _CONFLICTS}
        self._released: dict[int, np.ndarray] = {}  # by address

    def access(self, program: int, kind: str, addresses: Sequence[int], place: Place) -> None:
        """Note it; raise a `RaceError` if it conflicts with one that it does not come behind."""
        agent = 2 * program + (kind == "atomic")
        cells = np.fromiter(map(self._cells.__getitem__, addresses), np.intp, len(addresses))
        if len(self._cells) > len(self._last[kind]):
            room = ((0, 2 * len(self._cells)), (0, 0))
            self._last = {k: np.pad(last, room) for k, last in self._last.items()}
        self._places[agent].append(place)
        clock = self._clocks[agent]
        clock[agent] += 1
        for before in _CONFLICTS[kind]:
            known = clock
            if kind == "read":  # what the program's threads stored themselves, but for since the last barrier
                known = known.copy()
                known[agent] = self._clocks[agent + 1, agent]
            late = self._last[before][cells] > known
            if late.any():
                cell, other = np.argwhere(late)[0]
                there = self._places[other][self._last[before][cells[cell], other] - 1]
                raise RaceError(
                    f"a {kind} of program {program} ({said(place)}) and a {before} of program {other // 2} "
                    f"({said(there)}) at one address: nothing orders them"
                )
        self._last[kind][cells, agent] = clock[agent]
        if kind == "write" and self._released:
            for address in addresses:
                self._released.pop(address, None)

    def atomic(
        self, program: int, addresses: Sequence[int], place: Place, acquires: bool, releases: bool
    ) -> None:
        """An atomic access, and what it acquires and releases."""
        agent = 2 * program + 1
        clock, nothing = self._clocks[agent], np.zeros_like(self._clocks[agent])
        if acquires:
            for address in addresses:
                np.maximum(clock, self._released.get(address, nothing), out=clock)
        self.access(program, "atomic", addresses, place)
        if releases:
            for address in addresses:
                self._released[address] = np.maximum(clock, self._released.get(address, nothing))

    def barrier(self, program: int) -> None:
        """Of the program's threads: all of them know what one does."""
        both = self._clocks[2 * program : 2 * program + 2]
        both[:] = both.max(0)

    def follow(self, program: int, others: Sequence[int]) -> None:
        """The program goes on when the others have ended, and knows all that they did."""
        agents = [agent for other in (*others, program) for agent in (2 * other, 2 * other + 1)]
        self._clocks[2 * program : 2 * program + 2] = self._clocks[agents].max(0)
