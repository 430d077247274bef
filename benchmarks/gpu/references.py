"""What the kernels' launchers must return: torch's ops on the same arguments, in whatever dtype."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fastmlp.activations import TABLE, Act
from fastmlp.backends import base
from fastmlp.backends.base import (
    NOTHING,
    BackwardOptions,
    Dropout,
    HeadOptions,
    HeadResult,
    LinearGrads,
    LossOptions,
    Quantized,
    Scale,
    SquaredError,
    Undo,
    Wanted,
)
from fastmlp.backends.logit_tiles import loss_gradient
from fastmlp.backends.torch_backend import TorchBackend
from fastmlp.engine.rules import Rule
from fastmlp.kernels.common.arguments import Activation, Source
from fastmlp.kernels.linear.backward import Undone
from fastmlp.kernels.loss import cross_entropy, mse
from fastmlp.kernels.loss.softmax import Criterion
from fastmlp.kernels.mlp.forward import Net
from fastmlp.kernels.offline import cases, loss_cases, mlp_cases, training_cases

from .calls import Launcher, Named

_TORCH = TorchBackend()


def _number(vector: Any) -> Any:
    return None if vector is None else vector.ptr


def _act(act: Activation) -> Act:
    return Act(TABLE[act.name.value], act.slope, _number(act.weight))


def _input(x: Source, index: Tensor | None = None) -> Quantized:
    scale = 1.0 if x.scale is None else _number(x.scale)
    return Quantized(x.matrix.ptr, scale, _number(x.shift), x.index if index is None else index)


def _undo(undone: Undone) -> Undo:
    undo, site = undone
    if undo is None:
        return NOTHING
    drop = None if undo.drop is None else Dropout(undo.drop.p, undo.drop.seed, site)
    return Undo(_act(undo.act), _number(undo.saved), drop)


def _linear(
    x: Source | Tensor,
    weight: Tensor,
    bias: Tensor | None,
    act: Activation,
    keep_z: bool,
    dtype: torch.dtype,
    precision: str,
    dropout: tuple[float, Tensor, int] | None = None,
) -> Named:
    drop = None if dropout is None else Dropout(*dropout)
    source = x if isinstance(x, Tensor) else _input(x)
    f = _act(act)
    f = f._replace(weight=None if f.weight is None else f.weight.to(dtype))
    y, z = _TORCH.linear_act(source, weight, bias, f, keep_z, dtype, drop)
    return {"Y": y, "Z": z}


def _linear_backward(
    grad: Tensor,
    x: Source | Tensor,
    weight: Tensor,
    *,
    after: Undone = (None, 0),
    before: Undone,
    scale: Any,
    asked: Any,
    precision: str,
    **options: Any,
) -> Named:
    how = BackwardOptions(
        after=_undo(after),
        before=_undo(before),
        scale=None if scale is None else Scale(*scale),
        need_input=asked.input,
        need_params=asked.params,
        bias_dtype=asked.bias_dtype,
        **options,
    )
    source = x if isinstance(x, Tensor) else _input(x)
    return _TORCH.linear_backward(grad, source, weight, how)._asdict()


def _consistent(*args: Any, after: Undone = (None, 0), before: Undone, **options: Any) -> None:
    """Make a saved output 0 where the dropout behind it drops: some activations compute f' from that."""
    for undo, drop in ((u[0], _undo(u).dropout) for u in (after, before)):
        if (
            drop is not None
            and undo is not None
            and undo.saved is not None
            and _undo((undo, 0)).act.saves_output
        ):
            saved = undo.saved.ptr
            saved.mul_(_TORCH.dropout_mask(drop, *saved.shape))


def _head(
    h: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    criterion: Criterion,
    before: Any,
    wanted: tuple[bool, bool, bool],
    *,
    precision: str,
    **dtypes: Any,
) -> Named:
    undo, target = _undo((before, 0)), criterion.target.matrix.ptr
    options: Any = SquaredError(criterion.reduction.value)
    if criterion.name.value == "cross_entropy":
        numbers = criterion.ignore_index, criterion.reduction.value, criterion.smoothing or 0.0
        options, target = LossOptions(*numbers, criterion.z_loss), target.long()
    how = HeadOptions(target, _number(criterion.weight), options, Wanted(*wanted), before=undo, **dtypes)
    return _TORCH.head(h, weight, bias, how)._asdict()


def _loss(logits: Tensor, target: Tensor, weight: Tensor | None, options: dict[str, Any]) -> Tensor:
    known = {name: options[name] for name in ("reduction", "ignore_index", "label_smoothing")}
    target = target if target.is_floating_point() else target.long()
    return F.cross_entropy(logits, target, weight, **known)


def _cross_entropy(logits: Tensor, target: Tensor, weight: Tensor | None, **options: Any) -> Named:
    return {"loss": _loss(logits, target, weight, options)}


def _cross_entropy_backward(
    grad: Tensor,
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    stats: Tensor,
    out: Tensor,
    first: int = 0,
    classes: int | None = None,
    **options: Any,
) -> Named:
    if classes is not None:  # a tile of them, whose softmax is known by the statistics of all
        known = LossOptions(options["ignore_index"], "none", options["label_smoothing"])
        loss_gradient(logits, first, classes, base.Criterion(target, weight, known), stats, grad)
        return {"dlogits": logits}
    logits = logits.detach().requires_grad_()
    return {"dlogits": torch.autograd.grad(_loss(logits, target, weight, options), logits, grad)[0]}


def _squared_error(x: Tensor, target: Tensor, weight: Tensor | None, *, reduction: str) -> Named:
    return {"loss": _TORCH.mse_loss(x, target, weight, SquaredError(reduction))[0]}


def _squared_error_backward(
    grad: Tensor, x: Tensor, target: Tensor, weight: Tensor | None, denominator: Tensor, *, reduction: str
) -> Named:
    options = SquaredError(reduction)
    return {"dX": _TORCH.mse_loss_backward(grad, x, target, weight, denominator, options)}


def _chain(x: Tensor, net: Net) -> tuple[Tensor, list[tuple[str, Tensor]]]:
    """The last activation's input, and the leaves it was computed from, by the names of their gradients."""
    h = x.detach().to(net.dtype).requires_grad_()
    leaves, parameters = [("dX", h)], zip(net.weights, net.biases)
    for i, (weight, bias) in enumerate(parameters):
        slope = net.slope_weights[i] if i < len(net.weights) - 1 else None
        named = {f"dW{i}": weight, f"db{i}": bias, f"dslope{i}": slope}
        found = {
            name: tensor.detach().to(net.dtype).requires_grad_()
            for name, tensor in named.items()
            if tensor is not None
        }
        leaves += found.items()
        z = F.linear(h, found[f"dW{i}"], found.get(f"db{i}"))
        if i < len(net.weights) - 1:
            h = Act(TABLE[net.act], net.slope, found.get(f"dslope{i}"))(z)
    return z, leaves


def _mlp(x: Tensor, net: Net, *, save: bool, keep_z: bool) -> Named:
    z, _ = _chain(x, net)
    return {"Y": Act(TABLE[net.out_act], net.out_slope)(z).detach(), "Z": z.detach() if keep_z else None}


def _mlp_backward(
    grad: Tensor, x: Tensor, net: Net, saved: Tensor | None, out_saved: Tensor | None, **_: Any
) -> Named:
    z, leaves = _chain(x, net)
    if out_saved is not None:
        grad = grad * Act(TABLE[net.out_act], net.out_slope).derivative(out_saved)
    found = torch.autograd.grad(z, [leaf for _, leaf in leaves], grad.to(net.dtype))
    return dict(zip((name for name, _ in leaves), found))


def _mlp_gradients(
    found: Any, before: Any, grad: Tensor, x: Tensor, net: Net, *args: Any, **options: Any
) -> Named:
    named: Named = {"dX": found.input}
    for i, (weight, bias) in enumerate(found.layers(net.widths)):
        named |= {f"dW{i}": weight} if net.biases[i] is None else {f"dW{i}": weight, f"db{i}": bias}
    for i, (slope, start) in enumerate(zip(net.slope_weights, net.offsets)):
        if slope is not None:
            named[f"dslope{i}"] = found.slopes[start : start + len(slope)]
    return named


def _parameters(net: Any) -> dict[str, Tensor]:
    layers = enumerate(net.layers)
    named = ((i, {"W": layer.weight, "b": layer.bias}) for i, layer in layers)
    return {f"{n}{i}": p for i, both in named for n, p in both.items() if p is not None}


def _optimizer(recipe: Any, parameters: list[Tensor], batch: int) -> torch.optim.Optimizer:
    if recipe.rule == "adam":
        return torch.optim.Adam(parameters, lr=0.01, eps=1e-3, weight_decay=0.01)
    lr = 0.1 if recipe.reduction == "mean" else 0.1 / batch
    momentum = 0.0 if recipe.rule == "sgd" else 0.9
    return torch.optim.SGD(parameters, lr, momentum, weight_decay=0.01, nesterov=recipe.rule == "nesterov")


def _start(net: Any, recipe: Any, batch: int, hypers: Tensor, into: Any) -> None:
    """Prepare an optimizer's first steps: its hyperparameters, no state, and no loss yet."""
    parameters = list(_parameters(net).values())
    rule = Rule(_optimizer(recipe, parameters, batch), parameters)
    steps = hypers.shape[0] if hypers.dim() == 3 else 1
    hypers.copy_(rule.rows(torch.ones(steps, dtype=torch.float64)).view_as(hypers))
    for state in (into.sums, *(state for layer in net.layers for state in layer.state)):
        if state is not None:
            state.zero_()


def _train(net: Any, recipe: Any, x: Source, y: Source, batch: int) -> Named:
    """Batch after batch by autograd and `torch.optim`: how far the parameters moved, and the losses."""
    started = _parameters(net)
    named = {name: p.detach().clone().requires_grad_() for name, p in started.items()}
    optimizer = _optimizer(recipe, list(named.values()), batch)
    total = torch.zeros((), dtype=torch.float64)
    for index in x.index.split(batch):
        h = _input(x, index).dense(recipe.dtype)
        for i, layer in enumerate(net.layers):
            bias = named.get(f"b{i}")
            z = F.linear(h, named[f"W{i}"].to(recipe.dtype), None if bias is None else bias.to(recipe.dtype))
            h = Act(TABLE[layer.act], layer.slope)(z)
        wide = torch.promote_types(recipe.dtype, torch.float32)
        target = y.matrix.ptr[index]
        if recipe.loss == "mse":
            loss = F.mse_loss(h.to(wide), target.to(wide), reduction=recipe.reduction)
        else:
            known = {"reduction": recipe.reduction, "label_smoothing": recipe.label_smoothing}
            loss = F.cross_entropy(h.to(wide), target, recipe.class_weight, **known)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.detach().double().cpu() * len(index)
    changes = {f"change of {name}": p.detach() - started[name] for name, p in named.items()}
    return {**changes, "loss": loss.detach(), "sum of losses": total.float()}


def _trained(before: Any, net: Any, into: Any) -> Named:
    started = _parameters(before[0][0])
    changes = {f"change of {name}": p - started[name] for name, p in _parameters(net).items()}
    return {**changes, "loss": into.loss, "sum of losses": into.sums[0].float()}


def _names(*names: str) -> Callable[..., Named]:
    return lambda returned, *args, **options: dict(zip(names, returned))


LAUNCHERS = (
    Launcher(cases, "linear_act", _names("Y", "Z"), _linear),
    Launcher(cases, "linear_act_tma", _names("Y", "Z"), _linear),
    Launcher(cases, "linear_backward", _names(*LinearGrads._fields), _linear_backward, _consistent),
    Launcher(cases, "linear_backward_tma", _names(*LinearGrads._fields), _linear_backward, _consistent),
    Launcher(
        cases,
        "dropout_mask",
        lambda made, before, dropout, m, n: {"mask": made.float()},
        lambda dropout, m, n: {"mask": _TORCH.dropout_mask(Dropout(*dropout), m, n).float()},
    ),
    Launcher(loss_cases, "head_kernels", _names(*HeadResult._fields), _head, roundings=2),
    Launcher(cross_entropy, "forward", _names("loss"), _cross_entropy),
    Launcher(
        cross_entropy,
        "backward",
        lambda _, before, grad, logits, target, weight, stats, out, **options: {"dlogits": out},
        _cross_entropy_backward,
    ),
    Launcher(mse, "forward", _names("loss"), _squared_error),
    Launcher(mse, "backward", lambda made, *args, **options: {"dX": made}, _squared_error_backward),
    Launcher(
        mlp_cases,
        "mlp_forward",
        lambda made, *args, **options: {"Y": made[0], "Z": made[2]},
        _mlp,
    ),
    Launcher(mlp_cases, "mlp_backward", _mlp_gradients, _mlp_backward),
    Launcher(
        training_cases,
        "train_step",
        lambda _, before, net, recipe, x, y, hypers, into, tile: _trained(before, net, into),
        lambda net, recipe, x, y, hypers, into, tile: _train(net, recipe, x, y, len(x.index)),
        lambda net, recipe, x, y, hypers, into, tile: _start(net, recipe, len(x.index), hypers, into),
    ),
    Launcher(
        training_cases,
        "epoch",
        lambda _, before, net, recipe, x, y, batch, hypers, into, *rest: _trained(before, net, into),
        lambda net, recipe, x, y, batch, hypers, into, *_: _train(net, recipe, x, y, batch),
        lambda net, recipe, x, y, batch, hypers, into, *_: _start(net, recipe, batch, hypers, into),
    ),
)
