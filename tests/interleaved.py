"""The programs of a launch interleaved: races, barriers that never open, parts read before they are written.

Triton's interpreter runs them one after another, which hides all of that. Inside ``with interleaved(seed):``
each is a thread. One runs at a time, and at every load, store and atomic the turn passes to another, as the
seed says. `tests.ordered` knows whether anything orders what they do. Programmatic dependent launches
overlap: they are made together, before the next launch that is none, or at the end.
"""

from __future__ import annotations

import inspect
import random
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import triton
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.interpreter import GridExecutor, InterpreterBuilder, TensorHandle

from fastmlp.kernels.common import device
from tests.ordered import Memory, Place, RaceError, said

#: Turns of each that show no program anything new, until all are taken to wait for ever.
_PATIENCE = 100
_NOT_KERNELS = (__file__, str(Path(triton.__file__).parent))


class StuckError(AssertionError):
    """Every program waits, and none will write what another waits for."""


class _EndedError(BaseException):
    """Another program failed, so this one ends. No Exception: the interpreter would wrap it."""


class Program:
    """A program of a launch, and its thread."""

    def __init__(self, launch: Launch, run: Callable[[], Any]) -> None:
        self._launch, self._run = launch, run
        chain, builder = launch.chain, interpreter.interpreter_builder
        self.number, self._place = len(chain.programs), (builder.grid_dim, builder.grid_idx)
        #: Some are very much faster than others.
        self.speed = 10 ** chain.draw.uniform(-4, 0)
        self.turn = threading.Semaphore(0)
        self.thread = threading.Thread(target=self.main, daemon=True)
        self._waits = False
        self._seen: Any = None
        #: The state of memory in which an access that it repeats has shown it nothing new.
        self.idle_at = -1

    def main(self) -> None:
        """All that its thread does."""
        try:
            self.wait()
            self._run()
        except _EndedError:
            pass
        except BaseException as error:
            self._launch.chain.fail(error)
        finally:
            self._launch.running.discard(self)
            self.launch_dependents()
            self._launch.chain.leave(self)

    def wait(self) -> None:
        """Until it is its turn."""
        self.turn.acquire()
        if self._launch.chain.error is not None:
            raise _EndedError
        self._launch.chain.running = self
        builder = interpreter.interpreter_builder
        builder.grid_dim, builder.grid_idx = self._place

    def may_run(self) -> bool:
        """Whether the launch before lets it."""
        before = self._launch.before
        return before is None or not (before.running if self._waits else before.blocking)

    def wait_for_previous(self) -> None:
        """Until all programs of the launch before have ended."""
        chain, before = self._launch.chain, self._launch.before
        self._waits = True
        chain.pass_on()
        if before is not None:
            chain.memory.follow(self.number, [program.number for program in before.programs])

    def launch_dependents(self) -> None:
        """The next launch may begin once all programs of this one have said so, or ended."""
        self._launch.blocking.discard(self)

    def sees(self, what: Any) -> None:
        """The last access and what it gave."""
        state = self._launch.chain.state
        self.idle_at = state if what is not None and what == self._seen else -1
        self._seen = what


class Launch:
    """A kernel's function as the executor calls it, once for each program."""

    def __init__(self, kernel: Any, arguments: Any, chain: Chain) -> None:
        self.kernel, self._arguments = kernel, arguments  # which hold the memory
        self.__name__, self.__globals__ = kernel.__name__, kernel.__globals__
        self.__signature__, self.__annotations__ = inspect.signature(kernel), kernel.__annotations__
        self.chain, self.before = chain, chain.launches[-1] if chain.launches else None
        self.programs: list[Program] = []
        self.running: set[Program] = set()  # that have not ended
        self.blocking: set[Program] = set()  # that do not let the next launch begin

    def __call__(self, **arguments: Any) -> None:
        program = Program(self, lambda: self.kernel(**arguments))
        for programs in (self.chain.programs, self.programs):
            programs.append(program)
        self.running.add(program)
        self.blocking.add(program)


class Chain:
    """Launches that overlap, or a single one: their programs, of which one runs at a time."""

    def __init__(self, draw: random.Random) -> None:
        self.draw = draw
        self.launches: list[Launch] = []
        self.programs: list[Program] = []
        self._alive: list[Program] = []
        self.running: Program
        self.memory: Memory
        self.error: BaseException | None = None
        self.state = 0  # of memory, another number with every change
        self._in_vain = 0

    def run(self) -> None:
        """All programs, to their ends."""
        self.memory, self._alive = Memory(len(self.programs)), list(self.programs)
        scopes = [interpreter._patch_lang(launch.kernel) for launch in self.launches]
        try:
            with _hooks(self):
                for program in self.programs:
                    program.thread.start()
                self._next().turn.release()
                for program in self.programs:
                    program.thread.join()
        finally:
            for scope in reversed(scopes):
                scope.restore()
        if self.error is not None:
            raise self.error

    def _next(self) -> Program:
        able = [program for program in self._alive if program.may_run()]
        busy = [program for program in able if program.idle_at != self.state]
        if busy:
            self._in_vain = 0
            return self.draw.choices(busy, [program.speed for program in busy])[0]
        self._in_vain += 1
        return able[self._in_vain % len(able)]

    def pass_on(self) -> Program:
        """The running program is about to touch memory: it does so when it is its turn again."""
        if self._in_vain > _PATIENCE * len(self._alive):
            raise self.fail(StuckError(f"{len(self._alive)} programs wait for ever, one at {said(_place())}"))
        program = self.running
        self._next().turn.release()
        program.wait()
        return program

    def leave(self, program: Program) -> None:
        """It has ended."""
        self._alive.remove(program)
        if self._alive and self.error is None:
            self._next().turn.release()

    def fail(self, error: BaseException) -> BaseException:
        """The first error ends all programs."""
        if self.error is None:
            self.error = error
            for program in self.programs:
                program.turn.release()
        return _EndedError()

    def touch(self, ptrs: Any, mask: Any, kind: str, *order: bool) -> tuple[Program, list[int]]:
        """The running program's access, once it is its turn again: which addresses."""
        program = self.pass_on()
        there = np.broadcast_to(np.asarray(mask.data) != 0, ptrs.data.shape)
        addresses = ptrs.data[there].ravel().tolist()
        try:
            if kind == "atomic":
                self.memory.atomic(program.number, addresses, _place(), *order)
            else:
                self.memory.access(program.number, kind, addresses, _place())
        except RaceError as error:
            raise self.fail(error) from None
        return program, addresses


class _Broadcast(TensorHandle):  # type: ignore[misc]
    """An atomic's result. To read it the program's threads wait for the one that has it."""

    wait: Callable[[], None] | None = None

    def __getattribute__(self, name: str) -> Any:
        if name == "data":
            wait = object.__getattribute__(self, "wait")
            if wait is not None:
                wait()
        return object.__getattribute__(self, name)


@contextmanager
def _hooks(chain: Chain) -> Iterator[None]:
    """Every access to memory, and every barrier, goes by ``chain``."""
    builder: Any = InterpreterBuilder
    load, store, barrier = builder.create_masked_load, builder.create_masked_store, builder.create_barrier
    rmw, cas = builder.create_atomic_rmw, builder.create_atomic_cas

    def loads(self: Any, ptrs: Any, mask: Any, *rest: Any, **more: Any) -> Any:
        volatile = more["is_volatile"] if "is_volatile" in more else rest[-1]
        program, addresses = chain.touch(ptrs, mask, "poll" if volatile else "read")
        result = load(self, ptrs, mask, *rest, **more)
        program.sees(("load", addresses, result.data.tolist()) if len(addresses) == 1 else None)
        return result

    def stores(self: Any, ptrs: Any, value: Any, mask: Any, *rest: Any) -> None:
        program, _ = chain.touch(ptrs, mask, "write")
        store(self, ptrs, value, mask, *rest)
        chain.state += 1
        program.sees(None)

    def atomic(self: Any, ptr: Any, mask: Any, sem: Any, make: Callable[[], Any]) -> Any:
        acquires, releases = "ACQUIRE" in sem.name, "RELEASE" in sem.name
        program, addresses = chain.touch(ptr, mask, "atomic", acquires, releases)
        result = make()
        now = load(self, ptr, mask, None, None, None, False)
        chain.state += not np.array_equal(now.data, result.data)
        program.sees(("atomic", addresses, result.data.tolist()))
        found = _Broadcast(result.data, result.dtype)
        found.wait = lambda: chain.memory.barrier(program.number)
        return found

    def rmws(self: Any, op: Any, ptr: Any, value: Any, mask: Any, sem: Any, scope: Any) -> Any:
        return atomic(self, ptr, mask, sem, lambda: rmw(self, op, ptr, value, mask, sem, scope))

    def swaps(self: Any, ptr: Any, expected: Any, value: Any, sem: Any, scope: Any) -> Any:
        mask = TensorHandle(np.ones_like(ptr.data, dtype=bool), tl.int1)
        return atomic(self, ptr, mask, sem, lambda: cas(self, ptr, expected, value, sem, scope))

    def barriers(self: Any) -> Any:
        chain.memory.barrier(chain.running.number)
        return barrier(self)

    with (
        mock.patch.multiple(
            builder,
            create_masked_load=loads,
            create_masked_store=stores,
            create_atomic_rmw=rmws,
            create_atomic_cas=swaps,
            create_barrier=barriers,
        ),
        mock.patch.multiple(
            device,
            gdc_wait=lambda: chain.running.wait_for_previous(),
            gdc_launch_dependents=lambda: chain.running.launch_dependents(),
        ),
    ):
        yield


def _place() -> Place:
    """The line that is running, that of its function's call, and so on up to the kernel."""
    found: Place = []
    frame = sys._getframe(1)
    while frame.f_code is not Program.main.__code__:
        if not frame.f_code.co_filename.startswith(_NOT_KERNELS):
            found.append((frame.f_code.co_filename, frame.f_lineno))
        assert frame.f_back is not None
        frame = frame.f_back
    return found


@contextmanager
def interleaved(seed: int) -> Iterator[None]:
    """Every launch inside runs its programs side by side; raises `RaceError` or `StuckError`."""
    draw = random.Random(seed)
    execute, chain = GridExecutor.__call__, Chain(draw)

    def run() -> None:
        nonlocal chain
        made, chain = chain, Chain(draw)
        if made.programs:
            made.run()

    def executed(self: Any, *args: Any, **options: Any) -> None:
        dependent = bool(options.get("PDL"))
        if not dependent:
            run()
        chain.launches.append(Launch(self.fn, (args, options), chain))
        self.fn = chain.launches[-1]
        execute(self, *args, **options)
        if not dependent:
            run()

    with mock.patch.object(GridExecutor, "__call__", executed):
        yield
        run()
