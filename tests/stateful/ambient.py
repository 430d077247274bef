"""What a call can find itself within: modes, hooks, defaults; and classes that somebody patched."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.module import register_module_forward_hook
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import fastmlp
from fastmlp import backends
from fastmlp.costs.ceilings import tf32
from fastmlp.kernels import launch
from fastmlp.kernels.tiles import configs, decisions


class Seen(TorchFunctionMode):
    """Lets everything pass."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


class Tripled(TorchFunctionMode):
    """Changes what linear layers and losses give."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        return 3 * out if func in (F.linear, F.cross_entropy, fastmlp.functional.cross_entropy) else out


class Dispatched(TorchDispatchMode):
    """Lets everything pass, below autograd."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


@contextmanager
def default_dtype() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def deterministic() -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


@contextmanager
def grad_inside_inference() -> Iterator[None]:
    with torch.inference_mode(), torch.enable_grad():
        yield


#: Around a forward alone.
FORWARD: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "no_grad": torch.no_grad,
    "inference": torch.inference_mode,
    "inference, grad": grad_inside_inference,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "hooks": lambda: torch.autograd.graph.saved_tensors_hooks(lambda t: t.clone(), lambda t: t),
    "function mode": Seen,
    "overriding mode": Tripled,
}
#: Around forward and backward, or a whole step.
AROUND: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "meta by default": lambda: torch.device("meta"),
    "float64 by default": default_dtype,
    "deterministic": deterministic,
    "dispatch mode": Dispatched,
    "no oneDNN": lambda: torch.backends.mkldnn.flags(enabled=False),
}


#: The tile that "tile" asks for.
TILE = configs.Tile(16, 32, 32, 1, 4, 1)

#: Of no consequence for what is computed, but for how: around a whole call.
MEANS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "torch": lambda: backends.use("torch"),
    "auto": lambda: backends.use("auto"),
    "triton": lambda: backends.use("triton"),
    "tf32": tf32,
    "debug": lambda: mock.patch.dict(os.environ, FASTMLP_DEBUG="1"),
    "tile": lambda: configs.override("linear", TILE),
    "library": lambda: decisions.force(decisions.LIBRARY),
    "pointer": lambda: decisions.force(decisions.POINTER),
    "tma": lambda: decisions.force(decisions.TMA, decisions.POINTER),
    "observed": launch.record_launches,
}
#: What the copy in float64 does without.
_NUMERIC = ("autocast",)


def entered(names: Sequence[str], exact: bool, table: dict[str, Callable[[], Any]]) -> ExitStack:
    """Those of the named contexts that are in ``table``, open."""
    with ExitStack() as stack:  # which is left if one of them cannot be entered
        for name in names:
            if name in table and not (exact and name in _NUMERIC):
                stack.enter_context(table[name]())
        return stack.pop_all()


def _patched(*kinds: type, method: str = "forward") -> ExitStack:
    """Double what a method of classes gives."""
    stack = ExitStack()
    for kind in kinds:
        original = getattr(kind, method)

        def changed(self: Any, *args: Any, original: Any = original, **kwargs: Any) -> Any:
            return 2 * original(self, *args, **kwargs)

        own = method in kind.__dict__
        setattr(kind, method, changed)
        stack.callback(*((setattr, kind, method, original) if own else (delattr, kind, method)))
    return stack


def _step_patched() -> ExitStack:
    """An optimizer's step that also does something else."""
    stack = ExitStack()
    for kind in (torch.optim.SGD, torch.optim.Adam):  # AdamW's is Adam's
        original = kind.__dict__["step"]

        def changed(self: Any, *args: Any, original: Any = original) -> Any:
            out = original(self, *args)
            with torch.no_grad():
                for group in self.param_groups:
                    for p in group["params"]:
                        p.add_(0.125)
            return out

        kind.step = changed  # type: ignore[method-assign]
        stack.callback(setattr, kind, "step", original)
    return stack


def _global_hook() -> ExitStack:
    stack = ExitStack()

    def hook(module: nn.Module, args: Any, output: Tensor) -> Tensor | None:
        return 2 * output if isinstance(module, nn.Linear) else None

    stack.callback(register_module_forward_hook(hook).remove)
    return stack


#: What somebody does to classes, for good: each is undone by closing what it gives.
PATCHES: dict[str, Callable[[], ExitStack]] = {
    "Linear": lambda: _patched(nn.Linear),
    "ReLU": lambda: _patched(nn.ReLU, nn.Tanh, nn.GELU),
    "Sequential": lambda: _patched(nn.Sequential, fastmlp.Sequential),
    "loss": lambda: _patched(nn.CrossEntropyLoss, fastmlp.CrossEntropyLoss, nn.MSELoss, fastmlp.MSELoss),
    "step": _step_patched,
    "hook": _global_hook,
}
