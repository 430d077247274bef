"""Where in a network work is done, for a profiler; without one this does nothing.

A range is open during its turn of a loop over layers, so that a loop costs one check instead of one per
layer. `fastmlp.profiling` says what opening one means.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")

#: Opens the range of the layer that a weight belongs to.
Opener = Callable[[Tensor | None], AbstractContextManager[Any]]
_opener: Opener | None = None


def each(items: Iterable[T], weight_of: Callable[[T], Tensor | None]) -> Iterable[T]:
    """``items``; during a profile, each with its layer's range open while it is worked on."""
    # In this order: inside torch.compile the first is a constant, and the graph knows nothing of the second.
    if torch.compiler.is_compiling() or (opener := _opener) is None:
        return items
    return _opened(items, weight_of, opener)


def opened() -> bool:
    """Whether a profile runs."""
    return _opener is not None


def _opened(items: Iterable[T], weight_of: Callable[[T], Tensor | None], opener: Opener) -> Iterator[T]:
    for item in items:
        with opener(weight_of(item)):
            yield item


def set_opener(opener: Opener | None) -> Opener | None:
    """Use ``opener`` from now on; None opens no ranges.

    Returns:
        The previous one.
    """
    global _opener
    before, _opener = _opener, opener
    return before
