"""How an op is registered."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def op(name: str, schema: str, fake: Callable[..., Any]) -> Callable[[Callable[..., Any]], Any]:
    """Register the decorated function as ``fastmlp::name``.

    Args:
        name: of the op.
        schema: its arguments and results, without the name. Nothing is mutated, no result is an input.
        fake: the results' shapes, from the same arguments.
    """

    def register(function: Callable[..., Any]) -> Any:
        made = torch.library.custom_op(f"fastmlp::{name}", function, mutates_args=(), schema=schema)
        made.register_fake(fake)
        return made

    return register
