"""A range around every launch of our kernels, and a note of what it takes. Needs Triton."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

from fastmlp.costs.launches import count
from fastmlp.kernels import launch as door
from fastmlp.kernels.launch import Launch
from fastmlp.profiling.naming import Names
from fastmlp.profiling.trace import LAYER, Launched

#: proton's names of operations, by the width of the products' operands.
_WIDTHS = {"float32": 32, "tf32": 32, "float16": 16, "bfloat16": 16}


@contextmanager
def noted(
    launches: list[Launched], names: Names, open_range: Callable[..., AbstractContextManager[Any]]
) -> Iterator[None]:
    """Inside, each launch is made in its layer's range and one of its own, and added to ``launches``."""

    @contextmanager
    def around(launch: Launch) -> Iterator[tuple[Any, ...]]:
        counted = count(launch)
        layer = names.weights(counted.weights)
        x, y, z = (*launch.grid, 1, 1)[:3]
        launches.append(Launched(launch.name, (x, y, z), counted.work, counted.dtype, layer))
        metrics: dict[str, float] = {}
        if counted.work is not None:
            width = _WIDTHS.get(counted.dtype, "")
            metrics = {"bytes": counted.work.bytes, f"flops{width}": counted.work.operations}
        with ExitStack() as stack:
            if layer:
                stack.enter_context(open_range(LAYER + layer))
            stack.enter_context(open_range(launch.name, metrics))
            yield launch.args

    with door.around(around):
        yield
