"""Swap the Sequentials inside a model for the fused one, and say what came of it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Generic, Literal, TypeVar, overload

from torch import nn

from fastmlp import markup
from fastmlp.costs import plans
from fastmlp.functional.layer import Layers
from fastmlp.modules.linear_act import LinearAct
from fastmlp.modules.mlp import MLP
from fastmlp.modules.sequential import Sequential
from fastmlp.modules.stages import Dequantized, layer_of, stages_of, untouched
from fastmlp.modules.timm_mlp import TimmMlp

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True, repr=False)
class FuseReport(Generic[M]):
    """What `fuse` did; ``str`` of it is a list, and a notebook shows a table.

    A module's name is its qualified one in the model, "" for the model itself.
    """

    model: M = field(compare=False)
    #: (name, what): each module that was swapped, its new class and the chains that run in it.
    swapped: tuple[tuple[str, str], ...]
    #: (name, why): each module whose linear layers were left, and each single layer in a swapped one.
    left: tuple[tuple[str, str], ...]
    #: The names of modules that were fused before.
    already: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """How many of each."""
        already = f"{len(self.already)} fused already, " if self.already else ""
        return f"fuse: {len(self.swapped)} swapped, {already}{len(self.left)} left"

    def rows(self) -> list[tuple[str, str]]:
        """(modules, what or why), one row for all of which the same is to be said."""
        return [
            (_listed(names), f"{verb}: {what}")
            for verb, found in (("swapped", self.swapped), ("left", self.left))
            for what, names in _by_text(found).items()
        ]

    def __repr__(self) -> str:
        return f"<{self.title}>"

    def __str__(self) -> str:
        return "\n".join([self.title, *(f"  {names}: {what}" for names, what in self.rows())])

    def _repr_html_(self) -> str:
        return markup.table(self.title, ("modules", ""), self.rows(), texts=2)


@overload
def fuse(module: M, *, report: Literal[False] = False) -> M: ...
@overload
def fuse(module: M, *, report: Literal[True]) -> FuseReport[M]: ...
def fuse(module: M, *, report: bool = False) -> M | FuseReport[M]:
    """Make every ``nn.Sequential`` in ``module``, itself included, a `Sequential`. In place.

    What changes is the class of the objects that are there: parameters, buffers, names, hooks,
    modes, sharing and optimizers stay. A ``torchvision.ops.MLP`` becomes an `MLP`, and a
    ``timm.layers.Mlp`` a `TimmMlp`; any other subclass of ``nn.Sequential`` may have a forward of its
    own and is left as it is, though what is inside it is fused.

    Linear layers that a forward of the model's own calls one by one, as those in most of transformers,
    are not seen; ``report=True`` says so.

        print(fastmlp.fuse(model, report=True))

    Returns:
        ``module``; with ``report`` a `FuseReport`, whose ``model`` it is.

    Raises:
        TypeError: ``module`` is not an ``nn.Module``.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"module: expected an nn.Module, got {type(module).__name__}")
    swapped = [(name, child) for name, child in module.named_modules() if _swap(child)]
    if not report:
        return module
    made = tuple((name, _what(child)) for name, child in swapped)
    left = tuple(found for name, child in module.named_modules() for found in _left(name, child))
    if isinstance(module, nn.Linear):
        left += (("", f"{type(module).__name__}: a layer alone, which torch runs as fast"),)
    new = {name for name, _ in swapped}
    already = [
        name for name, child in module.named_modules() if isinstance(child, _FUSED) and name not in new
    ]
    return FuseReport(module, made, left, tuple(already))


def _swap(child: nn.Module) -> bool:
    """Give ``child`` the fused class, if there is one for its own."""
    kind = type(child)
    name = (kind.__module__, kind.__qualname__)
    if kind is nn.Sequential:
        child.__class__ = Sequential
    elif name == ("torchvision.ops.misc", "MLP"):
        child.__class__ = MLP
    elif name == ("timm.layers.mlp", "Mlp") and child._modules.keys() == set(TimmMlp.ORDER):
        child.__class__ = TimmMlp
    else:
        return False
    return True


_OPENED = (nn.Sequential, Sequential)
_FUSED = (Sequential, TimmMlp)


def _what(child: nn.Module) -> str:
    """The class of a swapped module, and its chains."""
    chains = [
        plans.name(plans.widths_of(stage.dense))
        for stage in (
            found.layers if isinstance(found, Dequantized) else found
            for found in stages_of(_run_by(child), _OPENED)
        )
        if isinstance(stage, Layers)
    ]
    return f"{type(child).__name__}, {', '.join(chains) or 'no linear layers to fuse'}"


def _run_by(child: nn.Module) -> list[nn.Module]:
    """The children of a fused module in the order in which they run."""
    if isinstance(child, TimmMlp):
        return [child._modules[name] for name in TimmMlp.ORDER]  # type: ignore[misc]
    return list(child.children())


def _left(name: str, child: nn.Module) -> Iterator[tuple[str, str]]:
    """Of the linear layers that ``child`` itself holds: which are not fused, and why."""
    layers = {key: layer for key, layer in child.named_children() if _is_linear(layer)}
    if isinstance(child, _FUSED):
        for key, layer in layers.items():
            if why := _touched(layer):
                yield f"{name}.{key}".lstrip("."), why
    elif layers:
        kind = type(child).__name__
        if isinstance(child, nn.Sequential):
            yield name, f"{kind}: this subclass of nn.Sequential may have a forward of its own"
        else:
            yield name, f"{kind}: no Sequential runs its linear layers ({', '.join(layers)})"


def _is_linear(module: nn.Module) -> bool:
    kind = type(module)
    conv1d = (kind.__module__, kind.__qualname__) == ("transformers.pytorch_utils", "Conv1D")
    return conv1d or (isinstance(module, nn.Linear) and not isinstance(module, LinearAct))


def _touched(layer: nn.Module) -> str:
    """Why a layer in a Sequential runs by itself; "" for not at all."""
    if type(layer) is not nn.Linear:
        return f"{type(layer).__name__}: not an nn.Linear itself"
    if layer._compiled_call_impl is not None:
        return "Linear: is compiled"
    if not untouched(layer):
        return "Linear: has hooks, or a forward that is not nn.Linear's"
    return "" if layer_of(layer) is not None else "Linear: weight or bias is no plain parameter"


def _by_text(found: tuple[tuple[str, str], ...]) -> dict[str, list[str]]:
    names = defaultdict(list)
    for name, text in found:
        names[text].append(name or "the model itself")
    return names


def _listed(names: list[str]) -> str:
    """All of a few names, of many the first."""
    return ", ".join(names) if len(names) <= 3 else f"{names[0]} and {len(names) - 1} more"
