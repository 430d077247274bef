"""What a Sequential runs: its children as stages, linear layers with activation and dropout together."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, TypeVar

from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from fastmlp.activations import TABLE, Act, from_module
from fastmlp.backends.base import Quantized
from fastmlp.functional.layer import Layer, Layers
from fastmlp.functional.linear import chain
from fastmlp.functional.quantized import INTEGERS
from fastmlp.modules.dequantize import Dequantize


class Dequantized(NamedTuple):
    """A `Dequantize`, perhaps an ``nn.Flatten`` after it, and the chain in whose loads it happens."""

    module: Dequantize
    flatten: nn.Flatten | None
    layers: Layers

    def __call__(self, input: Tensor) -> Tensor:
        """What the three do one after another."""
        return chain(self.source(input), self.layers)

    def source(self, input: Tensor) -> Tensor | Quantized:
        """What the chain is fed."""
        if input.dtype not in INTEGERS or input.dim() == 0:  # of which the kernels know nothing
            input = self.module(input)
            return input if self.flatten is None else self.flatten(input)
        return self.module.quantized(input if self.flatten is None else self.flatten(input))


#: A run of linear layers, each with its activation and dropout; one that reads integers; or a module that
#: runs as itself.
Stage = Layers | Dequantized | nn.Module


def stages_of(children: Iterable[nn.Module], opened: tuple[type[nn.Sequential], ...]) -> list[Stage]:
    """The stages of ``children``, found anew at every forward, since children can change at any time.

    Only an untouched child of exactly torch's type is fused. One with a hook, a parametrization, a
    type of its own, a ``forward`` of its own or weights of a tensor type of their own (quantized,
    distributed) runs as itself. A nested Sequential of one of the ``opened`` types stands for its
    children.
    """
    stages: list[list[Layer] | nn.Module] = []
    open_chain: list[Layer] | None = None  # its last layer may still take an activation and a dropout
    fresh = False  # whether that layer has neither yet
    for child in _flat(children, opened):
        if untouched(child):
            layer = layer_of(child)
            if layer is not None:
                if open_chain is None:
                    open_chain = []
                    stages.append(open_chain)
                open_chain.append(layer)
                fresh = True
                continue
            if is_identity(child):
                continue
            act = from_module(child) if fresh else None
            if act is not None and open_chain is not None and _fits(act, open_chain[-1]):
                open_chain[-1] = open_chain[-1]._replace(act=act)
                fresh = False
                continue
            # With p = 1 everything is dropped; what torch then does is its own.
            if type(child) is nn.Dropout and child.p < 1 and open_chain and not open_chain[-1].dropout:
                open_chain[-1] = open_chain[-1]._replace(dropout=child.p)
                fresh = False
                continue
        stages.append(child)
        open_chain, fresh = None, False
    return _quantized(stages)


def _quantized(found: list[list[Layer] | nn.Module]) -> list[Stage]:
    """The stages with a `Dequantize` in front of a chain made part of it; flattening commutes with it."""
    stages: list[Stage] = [Layers(stage) if isinstance(stage, list) else stage for stage in found]
    for i, stage in enumerate(stages):
        if type(stage) is not Dequantize or not untouched(stage):
            continue
        after = stages[i + 1 : i + 3]
        flatten = after.pop(0) if after and is_flatten(after[0]) and stage.is_uniform else None
        # As torch: outside of autocast the features must be of the layer's dtype.
        if after and isinstance(after[0], Layers) and after[0][0].weight.dtype == stage.scale.dtype:
            made = Dequantized(stage, flatten, after[0])  # type: ignore[arg-type]
            return [*stages[:i], made, *stages[i + (2 if flatten is None else 3) :]]
    return stages


def is_flatten(stage: object) -> bool:
    """Whether ``stage`` makes rows of features of whatever a batch is made of."""
    return type(stage) is nn.Flatten and untouched(stage) and (stage.start_dim, stage.end_dim) == (1, -1)


def untouched(module: nn.Module) -> bool:
    """Whether calling ``module`` does nothing but its class' forward, and that is as it was written."""
    kind: Any = type(module)
    return not (
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in module.__dict__
        or module._compiled_call_impl is not None
        or torch_module._has_any_global_hook()
        or kind.forward is not FORWARDS.get(kind, kind.forward)
        or kind.__call__ not in CALLS
    )


def written(kind: type[Module]) -> type[Module]:
    """Know ``kind`` by the forward that it has now, if it wrote that itself: from then on no other counts.

    Some set another on the class, as a way to put LoRA under every layer; perhaps before this is imported.
    """
    forward: Any = kind.forward
    own = forward.__globals__ is vars(sys.modules[kind.__module__])  # which functools.wraps cannot feign
    FORWARDS[kind] = forward if own else None
    return kind


Module = TypeVar("Module", bound=nn.Module)
#: What a call of a module may be: torch's own, and while somebody profiles one that opens a range around it.
CALLS: set[Any] = {nn.Module.__call__}
#: The forward of a class as it was written; None where there was another already.
FORWARDS: dict[Any, Any] = {}
for _kind in (
    nn.Linear,
    nn.Dropout,
    nn.Identity,
    nn.Flatten,
    nn.Sequential,
    nn.CrossEntropyLoss,
    nn.MSELoss,
    Dequantize,
    *(row.module for row in TABLE.values()),
):
    written(_kind)


def _flat(children: Iterable[nn.Module], opened: tuple[type[nn.Sequential], ...]) -> list[nn.Module]:
    """The children, with those of the ``opened`` types replaced by theirs."""
    flat: list[nn.Module] = []
    for child in children:
        if type(child) in opened and untouched(child):
            flat += _flat(child._modules.values(), opened)  # type: ignore[arg-type]
        else:
            flat.append(child)
    return flat


def opened(child: nn.Module, kinds: tuple[type[nn.Sequential], ...]) -> Iterator[nn.Module]:
    """What `stages_of` looks at for ``child``: itself, and the children of one of the ``kinds``."""
    yield child
    if type(child) in kinds:
        for below in child._modules.values():
            yield from opened(below, kinds)  # type: ignore[arg-type]


def layer_of(child: nn.Module) -> Layer | None:
    """An ``nn.Linear`` with plain parameters as a layer, else None."""
    if type(child) is not nn.Linear:
        return None
    # Not child.weight: a module's __getattr__ costs more than all the rest here. A weight or bias that
    # was replaced by an attribute or a buffer is not among the parameters.
    parameters = child._parameters
    if "weight" not in parameters or "bias" not in parameters:
        return None
    weight, bias = parameters["weight"], parameters["bias"]
    if type(weight) not in _PLAIN or not (bias is None or type(bias) in _PLAIN):
        return None
    return Layer(weight, bias)  # type: ignore[arg-type]


#: What a kernel may read by its address. Any other type of tensor decides itself what an op on it does.
_PLAIN = (nn.Parameter, Tensor)


def is_identity(child: nn.Module) -> bool:
    """Whether ``child`` gives the tensor back that it is given, as the dropouts of an MLP mostly do."""
    if type(child) is nn.Dropout:
        return (not child.training or child.p == 0) and untouched(child)
    return type(child) is nn.Identity and untouched(child)


def _fits(act: Act, layer: Layer) -> bool:
    """A PReLU of several slopes belongs to dimension 1, which is the features of a matrix alone."""
    slopes = act.weight
    if slopes is None:
        return True
    return type(slopes) in _PLAIN and slopes.dim() < 2 and slopes.numel() in (1, layer.weight.shape[0])
