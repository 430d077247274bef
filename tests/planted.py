"""Faults planted in kernels: the test that is to find them can fail."""

from __future__ import annotations

import inspect
from pathlib import Path
from types import ModuleType

import pytest


def plant(
    patch: pytest.MonkeyPatch, folder: Path, module: ModuleType, name: str, changes: dict[str, str]
) -> None:
    """Give ``module`` a jit function of that ``name`` with some texts changed to others.

    Each stands in the function once: a fault that the code has outgrown is an error. ``folder`` keeps the
    changed source, which Triton reads.
    """
    function = getattr(module, name).fn
    source = inspect.getsource(function)
    for old, new in changes.items():
        assert source.count(old) == 1, f"{old!r} is {source.count(old)} times in {name}"
        source = source.replace(old, new)
    file = folder / f"{name}.py"
    file.write_text(source)
    made: dict[str, object] = {}
    exec(compile(source, str(file), "exec"), function.__globals__, made)
    patch.setattr(module, name, made[name])
