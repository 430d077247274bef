"""Layers by name while a profile runs, with nothing hung on the modules.

A hook would make a network run otherwise than it does when nobody looks: an engine or a fused chain leaves
a module with a hook alone. So the names are in a side table, by module and by the address of a weight, and
ranges open where a layer's work is started: around ``nn.Module.__call__`` (as torch.fx traces), in the
loops over layers (`fastmlp.profiler_ranges`), and around every launch of our kernels.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fastmlp import profiler_ranges as ranges
from fastmlp.modules.stages import CALLS
from fastmlp.profiling.trace import LAYER, Launched

if TYPE_CHECKING:
    from fastmlp.kernels.launch import Launch


class Names:
    """Qualified names of modules and of those that own a parameter."""

    def __init__(self) -> None:
        self._modules: dict[int, str] = {}
        self._weights: dict[int, str] = {}  # by address

    def add(self, model: nn.Module, prefix: str = "") -> None:
        """Know ``model`` and all that is in it."""
        for name, module in model.named_modules(prefix=prefix):
            # A container's range would hide its children's from nothing: they have their own.
            name = name or type(model).__name__
            if not isinstance(module, nn.Sequential):
                self._modules[id(module)] = name
            for parameter in module.parameters(recurse=False):
                if parameter.numel() and not parameter.is_meta:
                    self._weights[parameter.data_ptr()] = name

    def module(self, module: nn.Module) -> str:
        """The name of a module, "" for one that is not known."""
        return self._modules.get(id(module), "")

    def weight(self, weight: Tensor | None) -> str:
        """The name of the module that ``weight`` belongs to."""
        try:
            return "" if weight is None else self._weights.get(weight.data_ptr(), "")
        except RuntimeError:  # a tensor without memory, as in a trace
            return ""

    def weights(self, weights: Sequence[Tensor]) -> str:
        """The name of the layer that a kernel is of, or of the first and the last."""
        known = list(dict.fromkeys(filter(None, map(self.weight, weights))))
        return f"{known[0]}..{known[-1]}" if len(known) > 1 else "".join(known)


@contextmanager
def opened(names: Names, open_range: Callable[[str], AbstractContextManager[Any]]) -> Iterator[None]:
    """Open a range for every layer's work inside the ``with`` block; inside torch.compile none is."""

    def of_weight(weight: Tensor | None) -> AbstractContextManager[Any]:
        name = names.weight(weight)
        return open_range(LAYER + name) if name else nullcontext()

    call = nn.Module.__call__

    def named_call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            return call(self, *args, **kwargs)
        name = names.module(self)
        if not name:
            return call(self, *args, **kwargs)
        with open_range(LAYER + name):
            return call(self, *args, **kwargs)

    before = ranges.set_opener(of_weight)
    nn.Module.__call__ = named_call  # type: ignore[method-assign, assignment]
    CALLS.add(named_call)
    try:
        yield
    finally:
        nn.Module.__call__ = call  # type: ignore[method-assign]
        CALLS.discard(named_call)
        ranges.set_opener(before)


#: proton's names of operations, by the width of the products' operands.
_WIDTHS = {"float32": 32, "tf32": 32, "float16": 16, "bfloat16": 16}


@contextmanager
def noted(
    launches: list[Launched], names: Names, open_range: Callable[..., AbstractContextManager[Any]]
) -> Iterator[None]:
    """Inside, each launch is made in its layer's range and one of its own, and added to ``launches``.

    Raises:
        ImportError: there is no Triton.
    """
    from fastmlp.costs.launches import count
    from fastmlp.kernels import launch as door

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


@contextmanager
def annotated(name: str, nvtx: bool, metrics: dict[str, float] | None = None) -> Iterator[None]:
    """A range of that name: torch's profiler's, NVTX's, and proton's with ``metrics`` where that runs."""
    with ExitStack() as stack:
        stack.enter_context(torch.profiler.record_function(name))
        if nvtx:
            torch.cuda.nvtx.range_push(name)
            stack.callback(torch.cuda.nvtx.range_pop)
        proton = sys.modules.get("triton.profiler")
        if proton is not None and proton.flags.flags.profiling_on:
            stack.enter_context(proton.scope(name, metrics))
        yield
