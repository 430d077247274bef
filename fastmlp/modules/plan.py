"""What a Sequential runs: its children as stages, linear layers with activation and dropout together."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from fastmlp.activations import Act, from_module
from fastmlp.functional.linear import Layer

#: A run of linear layers, each with its activation and dropout; or a module that runs as itself.
Stage = list[Layer] | nn.Module


def plan(children: Iterable[nn.Module], opened: tuple[type[nn.Sequential], ...]) -> list[Stage]:
    """The stages of ``children``, found anew at every forward, since children can change at any time.

    Only an untouched child of exactly torch's type is fused. One with a hook, a parametrization, a
    type of its own, a ``forward`` of its own or weights of a tensor type of their own (quantized,
    distributed) runs as itself. A nested Sequential of one of the ``opened`` types stands for its
    children.
    """
    stages: list[Stage] = []
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
            if _is_identity(child):
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
    return stages


def untouched(module: nn.Module) -> bool:
    """Whether calling ``module`` does nothing but its class' forward."""
    return not (
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in module.__dict__
        or module._compiled_call_impl is not None
        or torch_module._has_any_global_hook()
    )


def _flat(children: Iterable[nn.Module], opened: tuple[type[nn.Sequential], ...]) -> list[nn.Module]:
    """The children, with those of the ``opened`` types replaced by theirs."""
    flat: list[nn.Module] = []
    for child in children:
        if type(child) in opened and untouched(child):
            flat += _flat(child._modules.values(), opened)  # type: ignore[arg-type]
        else:
            flat.append(child)
    return flat


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


def _is_identity(child: nn.Module) -> bool:
    if isinstance(child, nn.Dropout):
        return type(child) is nn.Dropout and (not child.training or child.p == 0)
    return type(child) is nn.Identity


def _fits(act: Act, layer: Layer) -> bool:
    """A PReLU of several slopes belongs to dimension 1, which is the features of a matrix alone."""
    slopes = act.weight
    if slopes is None:
        return True
    return type(slopes) in _PLAIN and slopes.numel() in (1, layer.weight.shape[0])
