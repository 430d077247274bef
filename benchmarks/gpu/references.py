"""What the kernels' launchers must give: torch's ops on the same arguments, in their dtype and in float64.

`watched` notes what a case of `fastmlp.kernels.cases` calls its launchers with, so that a case needs to know
nothing of a reference, and every one of them has one.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional as F

from fastmlp.activations import TABLE, Act
from fastmlp.backends.base import (
    NOTHING,
    Dropout,
    HeadResult,
    LinearGrads,
    LossOptions,
    Quantized,
    Scale,
    SquaredError,
    Undo,
    Wanted,
)
from fastmlp.backends.loss_tiles import loss_gradient
from fastmlp.backends.torch_backend import TorchBackend
from fastmlp.engine.rules import Rule
from fastmlp.kernels import cases, cross_entropy, loss_cases, mlp_cases, mse, training_cases
from fastmlp.kernels.arguments import Activation, Source
from fastmlp.kernels.linear_backward import Undone
from fastmlp.kernels.mlp import Net
from fastmlp.kernels.softmax import Criterion

from ..numerics import allowed

#: Results by their names; None is not asked for.
Named = dict[str, Tensor | None]
_TORCH = TorchBackend()


@dataclasses.dataclass
class Launcher:
    """One of the kernels' launchers.

    ``name`` is where its module finds it; ``results`` names what a call of it made, and ``reference`` makes
    the same by torch's ops; both take the launcher's arguments. ``roundings``: see `numerics.allowed`.
    """

    module: Any
    name: str
    results: Callable[..., Named]
    reference: Callable[..., Named]
    prepare: Callable[..., None] = lambda *args, **options: None  # before it is called
    roundings: int = 1


@dataclasses.dataclass
class Call:
    """A launcher that was called: with what, as it was before the call, and what came of it."""

    launcher: Launcher
    function: Callable[..., Any]
    arguments: tuple[Any, dict[str, Any]]
    before: tuple[Any, dict[str, Any]]
    ours: Named

    def again(self) -> Named:
        """What comes of it once more, from the same arguments."""
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
        """What torch makes of it in the same dtypes."""
        return self._reference(copy.deepcopy(self.before))

    def exact(self) -> Named:
        """What float64 makes of it."""
        return self._reference(_exactly(self.before))

    def _reference(self, arguments: tuple[Any, dict[str, Any]]) -> Named:
        args, options = arguments
        with _precision(_precision_of(*self.before)):
            return self.launcher.reference(*args, **options)

    def allowed(self, result: Tensor, torchs: Tensor, exact: Tensor) -> float:
        """How far from ``exact`` the result may be.

        A chain rounds twice a layer. Of few numbers torch's own error can be small by luck: for these the
        dtype of the products counts, whatever the result's is.
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
def watched() -> Iterator[list[Call]]:
    """Collect the calls of launchers made inside the ``with`` block; what no kernel writes there is NaN."""
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
        for launcher in LAUNCHERS:
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


@contextmanager
def _precision(precision: str) -> Iterator[None]:
    """What torch multiplies float32 matrices in."""
    matmul = torch.backends.cuda.matmul
    before, matmul.fp32_precision = matmul.fp32_precision, precision
    try:
        yield
    finally:
        matmul.fp32_precision = before


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
    """The same arguments in float64, what they are to be computed in too."""
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
    found = _TORCH.linear_backward(
        grad,
        x if isinstance(x, Tensor) else _input(x),
        weight,
        after=_undo(after),
        before=_undo(before),
        scale=None if scale is None else Scale(*scale),
        need_input=asked.input,
        need_params=asked.params,
        bias_dtype=asked.bias_dtype,
        **options,
    )
    return found._asdict()


def _consistent(*args: Any, after: Undone = (None, 0), before: Undone, **options: Any) -> None:
    """A saved output is 0 where the dropout behind it dropped: f' of some activations is told from that."""
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
    return _TORCH.head(
        h,
        weight,
        bias,
        target,
        _number(criterion.weight),
        options,
        previous_act=undo.act,
        previous_saved=undo.saved,
        wanted=Wanted(*wanted),
        **dtypes,
    )._asdict()


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
        loss_gradient(logits, first, target, weight, stats, grad, known, classes)
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
    """What the last activation is given, and the leaves it was made of, by their gradients' names."""
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


def _optimizer(task: Any, parameters: list[Tensor], batch: int) -> torch.optim.Optimizer:
    if task.rule == "adam":
        return torch.optim.Adam(parameters, lr=0.01, eps=1e-3, weight_decay=0.01)
    lr = 0.1 if task.reduction == "mean" else 0.1 / batch
    momentum = 0.0 if task.rule == "sgd" else 0.9
    return torch.optim.SGD(parameters, lr, momentum, weight_decay=0.01, nesterov=task.rule == "nesterov")


def _start(net: Any, task: Any, batch: int, hypers: Tensor, into: Any) -> None:
    """An optimizer's first steps: its numbers, no state, and no loss yet."""
    parameters = list(_parameters(net).values())
    rule = Rule(_optimizer(task, parameters, batch), parameters)
    steps = hypers.shape[0] if hypers.dim() == 3 else 1
    hypers.copy_(rule.rows(torch.ones(steps, dtype=torch.float64)).view_as(hypers))
    for state in (into.sums, *(state for layer in net.layers for state in layer.state)):
        if state is not None:
            state.zero_()


def _train(net: Any, task: Any, x: Source, y: Source, batch: int) -> Named:
    """Batch after batch by autograd and `torch.optim`: how far the parameters went, and the losses."""
    started = _parameters(net)
    named = {name: p.detach().clone().requires_grad_() for name, p in started.items()}
    optimizer = _optimizer(task, list(named.values()), batch)
    total = torch.zeros((), dtype=torch.float64)
    for index in x.index.split(batch):
        h = _input(x, index).dense(task.dtype)
        for i, layer in enumerate(net.layers):
            bias = named.get(f"b{i}")
            z = F.linear(h, named[f"W{i}"].to(task.dtype), None if bias is None else bias.to(task.dtype))
            h = Act(TABLE[layer.act], layer.slope)(z)
        wide = torch.promote_types(task.dtype, torch.float32)
        target = y.matrix.ptr[index]
        if task.loss == "mse":
            loss = F.mse_loss(h.to(wide), target.to(wide), reduction=task.reduction)
        else:
            known = {"reduction": task.reduction, "label_smoothing": task.label_smoothing}
            loss = F.cross_entropy(h.to(wide), target, task.class_weight, **known)
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
        lambda _, before, net, task, x, y, hypers, into, tile: _trained(before, net, into),
        lambda net, task, x, y, hypers, into, tile: _train(net, task, x, y, len(x.index)),
        lambda net, task, x, y, hypers, into, tile: _start(net, task, len(x.index), hypers, into),
    ),
    Launcher(
        training_cases,
        "epoch",
        lambda _, before, net, task, x, y, batch, hypers, into, *rest: _trained(before, net, into),
        lambda net, task, x, y, batch, hypers, into, *_: _train(net, task, x, y, batch),
        lambda net, task, x, y, batch, hypers, into, *_: _start(net, task, batch, hypers, into),
    ),
)
