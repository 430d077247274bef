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
    """Remember what the interpreter finds out anew with every launch, device function and operation.

    That is which members of Triton's modules are its builtins, which modules are patched by now, and which
    dtype of NumPy's is one of Triton's.
    """
    try:
        from triton.language.core import dtype, is_builtin
        from triton.runtime import interpreter
    except ImportError:
        return

    @cache
    def builtins(owner: Any) -> list[str]:
        return [name for name, member in inspect.getmembers(owner) if is_builtin(member)]

    patch, names = interpreter._patch_builtin, ("pkg", "builder", "scope")
    wanted = ("_patch_attr", "_patch_lang", "_LangPatchScope", "_get_np_dtype")
    if not all(hasattr(interpreter, name) for name in wanted):
        return  # another version's
    if tuple(inspect.signature(patch).parameters) != names:
        return

    def patched(pkg: Any, builder: Any, scope: Any) -> None:
        for name in builtins(pkg):
            member = getattr(pkg, name)
            if is_builtin(member):  # else it is patched already: this is a call within a kernel
                interpreter._patch_attr(pkg, name, member, builder, scope)

    patch_lang, scope_of = interpreter._patch_lang, interpreter._LangPatchScope
    restore = scope_of.restore
    known: set[int] = set()  # the globals of all functions that were called in this launch

    def patched_once(function: Any) -> Any:
        if id(function.__globals__) in known:
            return scope_of()
        known.add(id(function.__globals__))
        return patch_lang(function)

    def restored(self: Any) -> None:
        known.clear()
        restore(self)

    slow, dtypes = interpreter._get_np_dtype, dict[str, Any]()

    def np_dtype(of: Any) -> Any:
        if type(of) is not dtype:
            return slow(of)
        if of.name not in dtypes:
            dtypes[of.name] = slow(of)
        return dtypes[of.name]

    interpreter._patch_builtin, interpreter._get_np_dtype = patched, np_dtype
    interpreter._patch_lang, scope_of.restore = patched_once, restored
