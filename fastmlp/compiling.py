"""What torch.compile is told, without importing it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

F = TypeVar("F", bound=Callable[..., object])


def constant(function: F) -> F:
    """``torch.compiler.assume_constant_result``, which imports the compiler: two seconds."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function
