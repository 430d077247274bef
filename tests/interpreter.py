"""Triton's interpreter, without the half of its time in which it looks for what it has found before."""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any


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
