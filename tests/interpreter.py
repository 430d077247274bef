"""Triton's interpreter: what it is given to run, and how it needs half the time."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any
from unittest import mock

from fastmlp.kernels.launch import INTERPRETED, Launch, record_launches


@contextmanager
def interpreted() -> Iterator[list[Launch]]:
    """The launches inside, seen by the interpreter itself: no observer changes how they are made.

    On a GPU `record_launches`.
    """
    if not INTERPRETED:
        with record_launches() as launches:
            yield launches
        return
    from triton.runtime.interpreter import GridExecutor

    found: list[Launch] = []
    run = GridExecutor.__call__

    def noted(self: Any, *args: Any, **options: Any) -> None:
        found.append(Launch(self.fn, self.grid, args, options))
        run(self, *args, **options)

    with mock.patch.object(GridExecutor, "__call__", noted):
        yield found


def hasten() -> None:
    """Remember which members of Triton's modules are its builtins.

    The interpreter lists all members at every launch and at every call of a device function.
    """
    try:
        from triton.language.core import is_builtin
        from triton.runtime import interpreter
    except ImportError:
        return

    @cache
    def builtins(owner: Any) -> list[str]:
        return [name for name, member in inspect.getmembers(owner) if is_builtin(member)]

    patch = interpreter._patch_builtin
    names = ("pkg", "builder", "scope")
    if not hasattr(interpreter, "_patch_attr") or tuple(inspect.signature(patch).parameters) != names:
        return  # another version's

    def patched(pkg: Any, builder: Any, scope: Any) -> None:
        for name in builtins(pkg):
            member = getattr(pkg, name)
            if is_builtin(member):  # else it is patched already: this is a call within a kernel
                interpreter._patch_attr(pkg, name, member, builder, scope)

    interpreter._patch_builtin = patched
