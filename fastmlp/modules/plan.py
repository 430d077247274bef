"""What a Sequential runs: its children as stages, linear layers and their activations together."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn
from torch.nn.modules import module as torch_module

from fastmlp.activations import Act, from_module
from fastmlp.functional.linear import Layer

#: A run of linear layers, each with its activation; or a module that runs as itself.
Stage = list[Layer] | nn.Module


def plan(children: Iterable[nn.Module], opened: tuple[type[nn.Sequential], ...]) -> list[Stage]:
    """The stages of ``children``, found anew at every forward, since children can change at any time.

    Only an untouched child of exactly torch's type is fused. One with a hook, a parametrization, a
    type of its own or a ``forward`` of its own runs as itself. A nested Sequential of one of the
    ``opened`` types stands for its children.
    """
    stages: list[Stage] = []
    open_chain: list[Layer] | None = None  # its last layer may still take an activation
    fresh = False  # whether that layer has none yet
    for child in _flat(children, opened):
        if type(child) is nn.Linear and untouched(child):
            layer = Layer(child.weight, child.bias)
            if open_chain is None:
                open_chain = []
                stages.append(open_chain)
            open_chain.append(layer)
            fresh = True
            continue
        if _is_identity(child) and untouched(child):
            continue
        act = from_module(child) if fresh and untouched(child) else None
        if act is not None and open_chain is not None and _fits(act, open_chain[-1]):
            open_chain[-1] = open_chain[-1]._replace(act=act)
            fresh = False
            continue
        stages.append(child)
        open_chain, fresh = None, False
    return stages


def untouched(module: nn.Module) -> bool:
    """Whether calling ``module`` does nothing but its class' forward."""
    return not (
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in module.__dict__
        or torch_module._has_any_global_hook()
    )


def _flat(children: Iterable[nn.Module], opened: tuple[type[nn.Sequential], ...]) -> Iterable[nn.Module]:
    """The children, with those of the ``opened`` types replaced by theirs."""
    for child in children:
        if isinstance(child, nn.Sequential) and type(child) in opened and untouched(child):
            yield from _flat(child, opened)
        else:
            yield child


def _is_identity(child: nn.Module) -> bool:
    if isinstance(child, nn.Dropout):
        return type(child) is nn.Dropout and (not child.training or child.p == 0)
    return type(child) is nn.Identity


def _fits(act: Act, layer: Layer) -> bool:
    """A PReLU of several slopes belongs to dimension 1, which is the features of a matrix alone."""
    return act.weight is None or act.weight.numel() in (1, layer.weight.shape[0])
