"""What can happen to a net, by name: each changes one side, and both are changed alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from tests.stateful.sides import Marked, Side


def negated(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    """A forward hook."""
    return -output


def doubled(module: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
    """A pre-hook."""
    return (2 * args[0],)


def _halved(module: nn.Module, given: Any, received: Any) -> Any:
    return tuple(None if g is None else g / 2 for g in given)


def _twice(grad: Tensor) -> Tensor:
    return 2 * grad


def _cleared(p: Tensor) -> None:
    p.grad = None


def _subclass(side: Side, layer: nn.Linear) -> None:
    layer.__class__ = Marked


def _own_forward(side: Side, layer: nn.Linear) -> None:
    layer.forward = lambda x: -nn.Linear.forward(layer, x)  # type: ignore[method-assign]


def _no_bias(side: Side, layer: nn.Linear) -> None:
    layer.bias = None


def _tied(side: Side, layer: nn.Linear) -> None:
    """Another layer of its shape has its very weight."""
    for other in side.layers:
        if other is not layer and other.weight.shape == layer.weight.shape:
            other.weight = layer.weight


def _shared_memory(side: Side, layer: nn.Linear) -> None:
    """Two parameters, one memory."""
    for other in side.layers:
        if other is not layer and other.weight.shape == layer.weight.shape:
            other.weight.data = layer.weight.data


def _frozen(side: Side, layer: nn.Linear) -> None:
    layer.weight.requires_grad_(not layer.weight.requires_grad)


def _frozen_bias(side: Side, layer: nn.Linear) -> None:
    layer.bias.requires_grad_(not layer.bias.requires_grad)


def _hooked(side: Side, layer: nn.Linear) -> None:
    layer.register_forward_hook(negated)


def _net_hooked(side: Side, layer: nn.Linear) -> None:
    side.net.register_forward_pre_hook(doubled)


def _backward_hooked(side: Side, layer: nn.Linear) -> None:
    layer.register_full_backward_hook(_halved)


def _tensor_hooked(side: Side, layer: nn.Linear) -> None:
    layer.weight.register_hook(_twice)


def _accumulated(side: Side, layer: nn.Linear) -> None:
    layer.weight.register_post_accumulate_grad_hook(_cleared)


def _normed(side: Side, layer: nn.Linear) -> None:
    parametrizations.weight_norm(layer)


def _spied(side: Side, layer: nn.Linear) -> None:
    """A hook of torch's own pruning: the weight is an attribute, computed before each forward."""
    nn.utils.prune.l1_unstructured(layer, "weight", 0.5)


def _wider(side: Side, layer: nn.Linear) -> None:
    """A last layer that fits, or does not."""
    side.net.append(nn.Linear(side.layers[-1].out_features, 3))


def _shorter(side: Side, layer: nn.Linear) -> None:
    if len(side.net) > 1:
        del side.net[-1]


def _eval(side: Side, layer: nn.Linear) -> None:
    side.net.train(not side.net.training)


def _module_hooks_gone(side: Side, layer: nn.Linear) -> None:
    for module in side.net.modules():
        for hooks in (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks):
            hooks.clear()
        module.__dict__.pop("forward", None)


CHANGES: dict[str, Callable[[Side, nn.Linear], None]] = {
    "a subclass": _subclass,
    "a forward of its own": _own_forward,
    "no bias": _no_bias,
    "tied": _tied,
    "one memory": _shared_memory,
    "frozen weight": _frozen,
    "frozen bias": _frozen_bias,
    "forward hook": _hooked,
    "pre-hook of the net": _net_hooked,
    "backward hook": _backward_hooked,
    "hook of the weight": _tensor_hooked,
    "hook after accumulation": _accumulated,
    "weight norm": _normed,
    "pruned": _spied,
    "one layer more": _wider,
    "one child less": _shorter,
    "eval": _eval,
    "without hooks": _module_hooks_gone,
}


def _momentum(optimizer: torch.optim.Optimizer) -> None:
    for group in optimizer.param_groups:
        if "momentum" in group:
            group["momentum"] = 0.5


def _lr_tensor(optimizer: torch.optim.Optimizer) -> None:
    for group in optimizer.param_groups:
        group["lr"] = torch.tensor(0.05, device="cpu", dtype=torch.float32)


def _lr(optimizer: torch.optim.Optimizer) -> None:
    for group in optimizer.param_groups:
        group["lr"] = 0.02


def _maximize(optimizer: torch.optim.Optimizer) -> None:
    optimizer.param_groups[0]["maximize"] = not optimizer.param_groups[0]["maximize"]


def _decay(optimizer: torch.optim.Optimizer) -> None:
    optimizer.param_groups[0]["weight_decay"] = 0.1


def _no_state(optimizer: torch.optim.Optimizer) -> None:
    optimizer.state.clear()


def _reloaded(optimizer: torch.optim.Optimizer) -> None:
    optimizer.load_state_dict(optimizer.state_dict())


def _one_less(optimizer: torch.optim.Optimizer) -> None:
    if len(optimizer.param_groups[0]["params"]) > 1:
        optimizer.param_groups[0]["params"].pop(0)


OPTIMIZER_CHANGES: dict[str, Callable[[torch.optim.Optimizer], None]] = {
    "momentum": _momentum,
    "lr is a tensor": _lr_tensor,
    "lr": _lr,
    "maximize": _maximize,
    "decay": _decay,
    "no state": _no_state,
    "reloaded": _reloaded,
    "one parameter less": _one_less,
}
