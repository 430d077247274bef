"""What a decision made before must not outlive, of a net and of a loss: `Routes` changes one at a time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn.utils import parametrize

from tests.stateful.changes import doubled, negated
from tests.stateful.sides import Side


def _body(side: Side) -> nn.Module:
    """The module whose children run one after another."""
    return next((m for m in side.net.modules() if isinstance(m, nn.Sequential)), side.net)


def _child(side: Side, i: int) -> tuple[nn.Module, str, nn.Module]:
    body = _body(side)
    name, child = list(body.named_children())[i % len(body._modules)]
    return body, name, child


def _twin(layer: nn.Linear) -> nn.Linear:
    n, k = layer.weight.shape
    return nn.Linear(k, n, layer.bias is not None, layer.weight.device, layer.weight.dtype)


def _replaced(side: Side, i: int) -> None:
    body, name, child = _child(side, i)
    setattr(body, name, _twin(child) if isinstance(child, nn.Linear) else nn.Tanh())


def _replaced_among(side: Side, i: int) -> None:
    """Behind the module's back, as some libraries do."""
    body, name, child = _child(side, i)
    body._modules[name] = _twin(child) if isinstance(child, nn.Linear) else nn.Sigmoid()


def _normed_between(side: Side, i: int) -> None:
    body, name, child = _child(side, i)
    if not isinstance(child, nn.Linear):
        setattr(body, name, nn.LayerNorm(side.layers[0].out_features, dtype=side.dtype))


def _inserted(side: Side, i: int) -> None:
    body = _body(side)
    body.insert(i % (len(body._modules) + 1), (nn.SiLU, nn.Identity, nn.ReLU)[i % 3]())  # type: ignore[operator]


def _removed(side: Side, i: int) -> None:
    body = _body(side)
    if len(body._modules) > 1:
        del body[i % len(body._modules)]  # type: ignore[operator]


def _moved(side: Side, i: int) -> None:
    """The same children in another order."""
    body, name, child = _child(side, i)
    if not isinstance(child, nn.Linear):
        body._modules[name] = body._modules.pop(name)


def _number(side: Side, i: int) -> None:
    """What an activation computes, by its attributes."""
    for child in side.net.modules():
        for name, values in {
            "negative_slope": (0.1, 0.5),
            "alpha": (0.5, 2.0),
            "approximate": ("tanh", "none"),
            "inplace": (True, False),
        }.items():
            if name in child.__dict__:
                setattr(child, name, values[i % 2])


def _p(side: Side, i: int) -> None:
    """Dropouts of which both houses give the same: of none, of next to none and of all."""
    for child in side.net.modules():
        if isinstance(child, nn.Dropout):
            child.p = (0.0, 1e-12, 1.0)[i % 3]


def _dropout(side: Side, i: int) -> None:
    body, name, child = _child(side, i)
    if not isinstance(child, nn.Linear):
        setattr(body, name, nn.Dropout(1e-12))


def _slopes(side: Side, i: int) -> None:
    for child in side.net.modules():
        if isinstance(child, nn.PReLU):
            child.weight = nn.Parameter(torch.rand(side.layers[0].out_features).to(side.dtype))


def _layer(side: Side, i: int) -> nn.Linear:
    return side.layers[i % len(side.layers)]


def _in_place(side: Side, i: int) -> None:
    with torch.no_grad():
        _layer(side, i).weight.neg_()


def _other_data(side: Side, i: int) -> None:
    p = _layer(side, i).weight
    p.data = -p.data.clone()


def _other_dtype(side: Side, i: int) -> None:
    """One parameter alone: with the others it fits no more, or again."""
    p = _layer(side, i).weight
    p.data = p.data.to(torch.float32 if p.dtype == torch.bfloat16 else torch.bfloat16)


def _other_shape(side: Side, i: int) -> None:
    layer = _layer(side, -1)
    for p in layer.parameters():
        p.data = torch.cat([p.data, p.data]) if len(p) < 40 else p.data[: len(p) // 2].clone()


def _swapped(side: Side, i: int) -> None:
    """The tensors change places, and every reference to the one is to the other."""
    p = _layer(side, i).weight
    torch.utils.swap_tensors(p, nn.Parameter(-p.detach().clone()))


def _other_bias(side: Side, i: int) -> None:
    layer = _layer(side, i)
    layer.bias = nn.Parameter(torch.rand(len(layer.weight)).to(layer.weight.dtype))


def _all_frozen(side: Side, i: int) -> None:
    side.net.requires_grad_(not _layer(side, 0).weight.requires_grad)


def _one_in_eval(side: Side, i: int) -> None:
    child = _child(side, i)[2]
    child.train(not child.training)


def _meta_and_back(side: Side, i: int) -> None:
    kept = {name: value.clone() for name, value in side.net.state_dict().items()}
    net = side.net.to("meta")
    x = torch.empty(3, side.layers[0].in_features, dtype=side.dtype, device="meta")
    assert net(x).is_meta
    net.to_empty(device="cpu").load_state_dict(kept)


def _dtype_and_back(side: Side, i: int) -> None:
    side.net.double().to(torch.float32)


def _pre_hooked(side: Side, i: int) -> None:
    _layer(side, i).register_forward_pre_hook(doubled)


def _child_hooked(side: Side, i: int) -> None:
    _child(side, i)[2].register_forward_hook(negated)


def _net_hooked_after(side: Side, i: int) -> None:
    side.net.register_forward_hook(negated)


def _backward_pre_hooked(side: Side, i: int) -> None:
    _layer(side, i).register_full_backward_pre_hook(lambda module, grads: tuple(2 * g for g in grads))


def _child_forward(side: Side, i: int) -> None:
    child = _child(side, i)[2]
    child.forward = lambda x: 3 * type(child).forward(child, x)  # type: ignore[method-assign]


def _net_forward(side: Side, i: int) -> None:
    net = side.net
    net.forward = lambda x: -type(net).forward(net, x)  # type: ignore[method-assign]


def _no_parametrization(side: Side, i: int) -> None:
    for layer in side.layers:
        if parametrize.is_parametrized(layer):
            parametrize.remove_parametrizations(layer, "weight")


def _flattened(side: Side, i: int) -> None:
    for module in side.net.modules():
        if hasattr(type(module), "flatten"):
            module.flatten = not module.flatten  # type: ignore[assignment]


def _activation(side: Side, i: int) -> None:
    for module in side.net.modules():
        if hasattr(module, "activation"):
            module.activation = ("relu", "tanh", None)[i % 3]  # type: ignore[assignment]


#: Each takes a number that picks a child, a layer or a value.
REBUILDS: dict[str, Callable[[Side, int], None]] = {
    "child replaced": _replaced,
    "child replaced behind its back": _replaced_among,
    "norm": _normed_between,
    "child inserted": _inserted,
    "child removed": _removed,
    "children in another order": _moved,
    "number of an activation": _number,
    "p": _p,
    "dropout": _dropout,
    "slopes": _slopes,
    "in place": _in_place,
    "other data": _other_data,
    "other dtype": _other_dtype,
    "other shape": _other_shape,
    "swapped": _swapped,
    "other bias": _other_bias,
    "all frozen": _all_frozen,
    "one in eval": _one_in_eval,
    "meta and back": _meta_and_back,
    "double and back": _dtype_and_back,
    "pre-hook": _pre_hooked,
    "hook of a child": _child_hooked,
    "hook of the net": _net_hooked_after,
    "backward pre-hook": _backward_pre_hooked,
    "a child's forward": _child_forward,
    "the net's forward": _net_forward,
    "no parametrization": _no_parametrization,
    "flatten": _flattened,
    "activation": _activation,
}


def _loss_reduction(loss: nn.Module, i: int) -> None:
    loss.reduction = ("mean", "sum", "none")[i % 3]  # type: ignore[assignment]


def _loss_weight(loss: nn.Module, i: int) -> None:
    """Of as many classes as before; None where it was none."""
    if isinstance(loss, nn.CrossEntropyLoss) and loss.weight is not None:
        loss.weight = None if i % 3 == 0 else loss.weight.flip(0)


def _loss_number(loss: nn.Module, i: int) -> None:
    if isinstance(loss, nn.CrossEntropyLoss):
        loss.label_smoothing = (0.0, 0.1)[i % 2]
        loss.ignore_index = (-100, 0, 1)[i % 3]


def _loss_hooked(loss: nn.Module, i: int) -> None:
    loss.register_forward_hook(negated)


def _loss_unhooked(loss: nn.Module, i: int) -> None:
    loss._forward_hooks.clear()
    loss.__dict__.pop("forward", None)


def _loss_forward(loss: nn.Module, i: int) -> None:
    loss.forward = lambda x, y: 2 * type(loss).forward(loss, x, y)  # type: ignore[method-assign]


#: The same of a loss.
LOSS_REBUILDS: dict[str, Callable[[nn.Module, int], None]] = {
    "reduction": _loss_reduction,
    "weight": _loss_weight,
    "number": _loss_number,
    "hook": _loss_hooked,
    "without hooks": _loss_unhooked,
    "forward": _loss_forward,
}
