"""Records what a case passes to its launchers, and their results; computes these by torch and in float64.

So a case need not know of a reference, and yet every case has one.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from fastmlp.kernels.mlp.forward import Net

from ..numerics import allowed, products

#: Results by their names; None where not asked for.
Named = dict[str, Tensor | None]


@dataclasses.dataclass
class Launcher:
    """One of the kernels' launchers.

    ``name`` is its name in ``module``; ``results`` names the results of a call, and ``reference`` computes
    them by torch's ops; both take the launcher's arguments. ``roundings``: see `numerics.allowed`.
    """

    module: Any
    name: str
    results: Callable[..., Named]
    reference: Callable[..., Named]
    prepare: Callable[..., None] = lambda *args, **options: None  # before it is called
    roundings: int = 1


@dataclasses.dataclass
class Call:
    """A call of a launcher: its arguments, a copy of them from before the call, and its results."""

    launcher: Launcher
    function: Callable[..., Any]
    arguments: tuple[Any, dict[str, Any]]
    before: tuple[Any, dict[str, Any]]
    ours: Named

    def again(self) -> Named:
        """The results of the same call once more."""
        for now, then in zip(_tensors(self.arguments), _tensors(self.before), strict=True):
            now.untyped_storage().copy_(then.untyped_storage())
        args, options = self.arguments
        with poisoned():
            return self._named(self.function(*args, **options))

    def _named(self, returned: Any) -> Named:
        args, options = self.arguments
        found = self.launcher.results(returned, self.before, *args, **options)
        return {name: None if made is None else made.clone() for name, made in found.items()}

    def torchs(self) -> Named:
        """Torch's results in the same dtypes."""
        return self._reference(copy.deepcopy(self.before))

    def exact(self) -> Named:
        """The results in float64."""
        return self._reference(_exactly(self.before))

    def _reference(self, arguments: tuple[Any, dict[str, Any]]) -> Named:
        args, options = arguments
        with products(_precision_of(*self.before)):
            return self.launcher.reference(*args, **options)

    def allowed(self, result: Tensor, torchs: Tensor, exact: Tensor) -> float:
        """How far from ``exact`` the result may be.

        A chain rounds twice a layer. If there are few numbers, torch's own error can be small by luck: then
        the dtype of the products counts, whatever the result's is.
        """
        args, options = self.arguments
        times, dtypes = self.launcher.roundings, [options.get("dtype"), *args]
        for argument in args:
            layers = argument.weights if isinstance(argument, Net) else getattr(argument, "layers", None)
            times = times if layers is None else 2 * len(layers)
            dtypes.append(getattr(argument, "dtype", None))
        steps = [torch.finfo(d).eps for d in dtypes if isinstance(d, torch.dtype) and d.is_floating_point]
        if _precision_of(args, options) == "tf32":
            steps.append(2.0**-10)
        eps = torch.finfo(result.dtype).eps
        coarsest = max([eps, *steps]) if result.numel() < _FEW else eps
        return allowed(torchs, exact, times, coarsest)


#: Fewer numbers than this are few.
_FEW = 64


@contextmanager
def watched(launchers: Iterable[Launcher]) -> Iterator[list[Call]]:
    """Collect their calls inside the ``with`` block, where memory that no kernel has written is NaN."""
    calls: list[Call] = []

    def noting(launcher: Launcher) -> Callable[..., Any]:
        function = getattr(launcher.module, launcher.name)

        def noted(*args: Any, **options: Any) -> Any:
            launcher.prepare(*args, **options)
            before = copy.deepcopy((args, options))
            returned = function(*args, **options)
            call = Call(launcher, function, (args, options), before, {})
            call.ours = call._named(returned)
            calls.append(call)
            return returned

        return noted

    with ExitStack() as stack, poisoned():
        for launcher in launchers:
            stack.enter_context(mock.patch.object(launcher.module, launcher.name, noting(launcher)))
        yield calls


@contextmanager
def poisoned() -> Iterator[None]:
    """Fresh memory is full of NaN, so that an element which no kernel wrote shows."""
    was = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)  # which fills what `torch.empty` makes
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(was[0], warn_only=was[1])


def _precision_of(args: tuple[Any, ...], options: dict[str, Any]) -> str:
    words = [a for a in args if isinstance(a, str)] + [getattr(a, "precision", None) for a in args]
    return next((w for w in (options.get("precision"), *words) if w in ("ieee", "tf32")), "ieee")


def _children(value: Any) -> list[Any]:
    if isinstance(value, tuple | list):
        return list(value)
    if isinstance(value, dict):
        return list(value.values())
    if dataclasses.is_dataclass(value):
        return [getattr(value, field.name) for field in dataclasses.fields(value)]
    return []


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    for child in _children(value):
        yield from _tensors(child)


def _exactly(value: Any) -> Any:
    """The same arguments in float64, and the dtypes among them too."""
    if isinstance(value, Tensor):
        return value.double() if value.is_floating_point() else value
    if isinstance(value, torch.dtype):
        return torch.float64 if value.is_floating_point else value
    if isinstance(value, tuple | list):
        members = map(_exactly, value)
        return type(value)(*members) if hasattr(value, "_fields") else type(value)(members)
    if isinstance(value, dict):
        return {name: _exactly(member) for name, member in value.items()}
    if dataclasses.is_dataclass(value):
        value = copy.copy(value)
        for field in dataclasses.fields(value):
            object.__setattr__(value, field.name, _exactly(getattr(value, field.name)))
    return value
