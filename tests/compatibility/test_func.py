"""Forward-mode AD, torch.func, torch.autograd.functional: transforms and tangents see torch's own ops."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, func, nn
from torch.autograd import forward_ad
from torch.autograd import functional as AF
from torch.nn import functional as F

import fastmlp
from fastmlp import backends
from fastmlp.activations import resolve
from fastmlp.functional import (
    Layer,
    chain,
    chain_cross_entropy,
    cross_entropy,
    linear_act,
    linear_cross_entropy,
    mlp,
)
from tests.compatibility.compare import same_or_as_good

GROUP = "Autograd"
AUTO = {"backend": "torch", "dtype": "float32"}  # on a GPU "auto" is the kernels, tested above
#: 4 rows of 3 features, 5 hidden, 3 classes.
SHAPES = ((4, 3), (5, 3), (5,), (3, 5), (3,))
Function = Callable[..., Tensor]


class Subject(NamedTuple):
    """Ours and torch's, functions of (x, w0, b0, w1, b1)."""

    name: str
    ours: Function
    torchs: Function


def called(module: nn.Module, names: Sequence[str]) -> Function:
    """A module as a function of its input and its parameters."""

    def call(x: Tensor, *params: Tensor) -> Tensor:
        return func.functional_call(module, dict(zip(names, params)), (x,))

    return call


def subjects(dtype: torch.dtype, device: str) -> list[Subject]:
    """Everything that has a gradient."""
    target = torch.tensor([0, 2, 1, 2], device=device)
    names = ("0.weight", "0.bias", "2.weight", "2.bias")
    like: dict[str, Any] = {"device": device, "dtype": dtype}
    children = nn.Linear(3, 5, **like), nn.Tanh(), nn.Linear(5, 3, **like)
    vision = fastmlp.MLP(3, [5, 3], activation_layer=nn.Tanh, **like)

    def net(x: Tensor, w: Tensor, b: Tensor, v: Tensor, c: Tensor) -> Tensor:
        return F.linear(F.linear(x, w, b).tanh(), v, c)

    def layers(w: Tensor, b: Tensor, v: Tensor, c: Tensor) -> list[Layer]:
        return [Layer(w, b, resolve("tanh")), Layer(v, c)]

    def loss(x: Tensor, *params: Tensor) -> Tensor:
        return F.cross_entropy(net(x, *params), target)

    lce = fastmlp.LinearCrossEntropyLoss(3, 5, bias=True, **like)
    lce_names = ("linear.weight", "linear.bias")
    act = fastmlp.LinearAct(3, 5, activation="gelu", **like)
    return [
        Subject("Sequential", called(fastmlp.Sequential(*children), names), net),
        Subject("MLP", called(vision, ("0.weight", "0.bias", "3.weight", "3.bias")), net),
        Subject(
            "LinearAct",
            lambda x, w, b, *_: called(act, ("weight", "bias"))(x, w, b),
            lambda x, w, b, *_: F.gelu(F.linear(x, w, b)),
        ),
        Subject(
            "CrossEntropyLoss",
            lambda x, *_: fastmlp.CrossEntropyLoss()(x, target),
            lambda x, *_: F.cross_entropy(x, target),
        ),
        Subject(
            "LinearCrossEntropyLoss",
            lambda x, w, b, *_: func.functional_call(lce, dict(zip(lce_names, (w, b))), (x, target)),
            lambda x, w, b, *_: F.cross_entropy(F.linear(x, w, b), target),
        ),
        Subject(
            "linear_act",
            lambda x, w, b, *_: linear_act(x, w, b, "silu"),
            lambda x, w, b, *_: F.silu(F.linear(x, w, b)),
        ),
        Subject("mlp", lambda x, w, b, v, c: mlp(x, (w, v), (b, c), "tanh"), net),
        Subject("chain", lambda x, *params: chain(x, layers(*params)), net),
        Subject(
            "cross_entropy",
            lambda x, *_: cross_entropy(x, target, label_smoothing=0.1, reduction="none"),
            lambda x, *_: F.cross_entropy(x, target, label_smoothing=0.1, reduction="none"),
        ),
        Subject(
            "linear_cross_entropy",
            lambda x, w, b, *_: linear_cross_entropy(x, w, target, linear_bias=b),
            lambda x, w, b, *_: F.cross_entropy(F.linear(x, w, b), target),
        ),
        Subject("chain_cross_entropy", lambda x, *p: chain_cross_entropy(x, layers(*p), target)[0], loss),
    ]


def total(function: Function) -> Function:
    """A scalar of the function's output that has curvature."""
    return lambda *tensors: function(*tensors).square().sum()


def dual(function: Function, tensors: Sequence[Tensor]) -> Tensor:
    """The tangent of every tensor along 1, half of it for the next, and so on."""
    with forward_ad.dual_level():
        seen = [forward_ad.make_dual(t, torch.full_like(t, 0.5**i)) for i, t in enumerate(tensors)]
        tangent = forward_ad.unpack_dual(function(*seen)).tangent
    assert tangent is not None
    return tangent.clone()


def of_weights(function: Function, tensors: Sequence[Tensor]) -> Tensor:
    """A tangent of the second tensor alone: the input is plain. A function without it gives 0."""
    with forward_ad.dual_level():
        weight = forward_ad.make_dual(tensors[1], torch.ones_like(tensors[1]))
        result = forward_ad.unpack_dual(function(tensors[0], weight, *tensors[2:]))
    return torch.zeros_like(result.primal) if result.tangent is None else result.tangent.clone()


ALL = tuple(range(len(SHAPES)))


def in_turn(transform: Callable[..., Any]) -> Callable[[Function, Sequence[Tensor]], Any]:
    """A transform that takes ``argnums``, of the input and of the first weight."""
    return lambda f, t: [transform(f, argnums=i)(*t) for i in (0, 1)]


def batched_grads(function: Function, tensors: Sequence[Tensor]) -> list[Tensor]:
    """``is_grads_batched``."""
    leaves = [t.clone().requires_grad_() for t in tensors]
    value = function(*leaves)
    ups = torch.arange(2.0 * value.numel(), device=value.device).to(value.dtype).view(2, *value.shape) / 8
    return list(
        torch.autograd.grad(
            value, leaves, ups, is_grads_batched=True, allow_unused=True, materialize_grads=True
        )
    )


#: Rows of the page, and what each computes of a function and tensors. Those that begin with "torch.func" or
#: "forward-mode" must give torch's own bits.
TRANSFORMS: dict[str, Callable[[Function, Sequence[Tensor]], Any]] = {
    "torch.func.grad": lambda f, t: func.grad(total(f), argnums=ALL)(*t),
    "torch.func.vjp": lambda f, t: (lambda y, pull: pull(torch.ones_like(y)))(*func.vjp(f, *t)),
    "torch.func.jvp": lambda f, t: func.jvp(f, tuple(t), tuple(torch.ones_like(s) for s in t)),
    "torch.func.jacrev": in_turn(func.jacrev),
    "torch.func.jacfwd": in_turn(func.jacfwd),
    "torch.func.hessian": lambda f, t: func.hessian(total(f))(*t),
    "torch.func.grad of grad": lambda f, t: func.grad(
        lambda *s: func.grad(total(f))(*s).square().sum(), argnums=ALL
    )(*t),
    "torch.func.vmap over copies of the batch": lambda f, t: func.vmap(f, (0, None, None, None, None))(
        torch.stack([t[0], 2 * t[0]]), *t[1:]
    ),
    "torch.func.vmap over weights": lambda f, t: func.vmap(f, (None, 0, None, None, None))(
        t[0], torch.stack([t[1], 2 * t[1]]), *t[2:]
    ),
    "forward-mode: dual tensors": dual,
    "forward-mode: a tangent of the weights alone": of_weights,
    "torch.autograd.functional.vjp": lambda f, t: AF.vjp(f, tuple(t), torch.ones_like(f(*t)))[1],
    "torch.autograd.functional.jvp": lambda f, t: AF.jvp(f, tuple(t), tuple(torch.ones_like(s) for s in t))[
        1
    ],
    "torch.autograd.functional.jacobian": lambda f, t: AF.jacobian(lambda *s: f(*s).flatten()[:2], tuple(t)),
    "torch.autograd.functional.jacobian, vectorize": lambda f, t: AF.jacobian(f, tuple(t), vectorize=True),
    "torch.autograd.functional.jacobian, forward-mode": lambda f, t: AF.jacobian(
        f, tuple(t), vectorize=True, strategy="forward-mode"
    ),
    "torch.autograd.functional.hessian": lambda f, t: AF.hessian(lambda b: total(f)(*t[:2], b, *t[3:]), t[2]),
    "torch.autograd.functional.hvp": lambda f, t: AF.hvp(
        total(f), tuple(t), tuple(torch.ones_like(s) for s in t)
    ),
    "torch.autograd.functional.vhp": lambda f, t: AF.vhp(
        total(f), tuple(t), tuple(torch.ones_like(s) for s in t)
    ),
    "torch.autograd.grad, is_grads_batched": batched_grads,
}


#: One subject for each autograd node of ours: where kernels run, the interpreter takes its time.
NODES = ("Sequential", "LinearAct", "cross_entropy", "linear_cross_entropy", "chain_cross_entropy")


def flat(value: Any) -> list[Tensor]:
    return [value] if isinstance(value, Tensor) else list(itertools.chain(*map(flat, value)))


def rows(names: Sequence[str]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        "name", [pytest.param(n, marks=pytest.mark.feature(GROUP, n)) for n in names]
    )


@pytest.mark.few(40)
@rows(list(TRANSFORMS))
def test_transform(name: str, backend: str, dtype: torch.dtype, device: str) -> None:
    tensors = [torch.randn(shape, device=device).to(dtype) for shape in SHAPES]
    transform = TRANSFORMS[name]
    own_bits = name.startswith(("torch.func", "forward-mode"))
    for subject in subjects(dtype, device):
        if not own_bits and subject.name not in NODES:
            continue
        found = [flat(transform(f, tensors)) for f in (subject.ours, subject.torchs)]
        wide = tensors if own_bits else [t.double() for t in tensors]
        found.append(flat(transform(subject.torchs, wide)))
        same_or_as_good(*found, "torch" if own_bits else backend, subject.name)


@pytest.mark.feature(GROUP, "torch.func.linearize", dtype="float32")
def test_linearize(backend: str, device: str) -> None:
    """Of a net and of a loss; it traces, which takes a while."""
    tensors = [torch.randn(shape, device=device) for shape in SHAPES]
    for subject in subjects(torch.float32, device):
        if subject.name in ("Sequential", "linear_cross_entropy"):
            ours, theirs = (
                func.linearize(f, *tensors)[1](*map(torch.ones_like, tensors)) for f in subject[1:]
            )
            assert torch.equal(ours, theirs)


@pytest.mark.feature(GROUP, "per-sample gradients: vmap of grad of functional_call")
def test_per_sample_gradients(backend: str, dtype: torch.dtype, device: str) -> None:
    net = fastmlp.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 4)).to(device, dtype)
    loss = fastmlp.CrossEntropyLoss(label_smoothing=0.1)
    x, y = torch.randn(6, 3, device=device).to(dtype), torch.tensor([0, 1, 2, 3, 0, 1], device=device)
    params = {k: v.detach() for k, v in net.named_parameters()}

    def of_one(params: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return loss(func.functional_call(net, params, (x[None],)), y[None])

    found = func.vmap(func.grad(of_one), (None, 0, 0))(params, x, y)
    plain = nn.Sequential(*net)
    for i in range(len(x)):
        theirs = torch.autograd.grad(
            F.cross_entropy(plain(x[i : i + 1]), y[i : i + 1], label_smoothing=0.1), list(plain.parameters())
        )
        for ours, grad in zip(found.values(), theirs):
            tolerance = 4 * torch.finfo(dtype).eps
            torch.testing.assert_close(ours[i], grad, rtol=tolerance, atol=tolerance)


@pytest.mark.feature(GROUP, "ensembles: stack_module_state and vmap")
@pytest.mark.parametrize("kind", ["Sequential", "MLP", "LinearAct"])
def test_ensemble(kind: str, backend: str, dtype: torch.dtype, device: str) -> None:
    """Forward, and the gradient of every member's loss."""

    def make() -> nn.Module:
        if kind == "LinearAct":
            return fastmlp.LinearAct(3, 4, activation=nn.PReLU())
        if kind == "MLP":
            return fastmlp.MLP(3, [5, 4], activation_layer=nn.SiLU)
        return fastmlp.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4))

    members = [make().to(device, dtype) for _ in range(3)]
    params, buffers = func.stack_module_state(members)
    base = copy.deepcopy(members[0]).to("meta")
    x, y = torch.randn(6, 3, device=device).to(dtype), torch.tensor([0, 1, 2, 3, 0, 1], device=device)

    def loss(params: dict[str, Tensor], buffers: dict[str, Tensor]) -> Tensor:
        return fastmlp.functional.cross_entropy(func.functional_call(base, (params, buffers), (x,)), y)

    grads = func.vmap(func.grad(loss))(params, buffers)
    outputs = func.vmap(lambda p, b: func.functional_call(base, (p, b), (x,)))(params, buffers)
    tolerance = 4 * torch.finfo(dtype).eps
    for i, member in enumerate(members):
        with backends.use("torch"):
            theirs = member(x)
        torch.testing.assert_close(outputs[i], theirs, rtol=tolerance, atol=tolerance)
        expected = torch.autograd.grad(F.cross_entropy(theirs, y), list(member.parameters()))
        for ours, grad in zip(grads.values(), expected):
            torch.testing.assert_close(ours[i], grad, rtol=tolerance, atol=tolerance)


@pytest.mark.feature(GROUP, "transforms of a backward whose forward ran before: vmap, tangents")
def test_transformed_backward(backend: str, dtype: torch.dtype, device: str) -> None:
    """The graph is there already, made by kernels; what comes in is a batch, or has a tangent."""
    tensors = [torch.randn(shape, device=device).to(dtype) for shape in SHAPES]
    for subject in subjects(dtype, device):
        if subject.name not in NODES:
            continue
        runs = []
        for function, kind in (
            (subject.ours, dtype),
            (subject.torchs, dtype),
            (subject.torchs, torch.float64),
        ):
            leaves = [t.to(kind, copy=True).requires_grad_() for t in tensors]
            value = function(*leaves)
            ups = torch.stack([torch.ones_like(value), torch.full_like(value, 0.25)]).detach()

            def pull(up: Tensor) -> Tensor:
                return torch.autograd.grad(value, leaves[0], up, retain_graph=True)[0]  # noqa: B023

            batch = func.vmap(pull)(ups)
            with forward_ad.dual_level():
                found = forward_ad.unpack_dual(pull(forward_ad.make_dual(ups[0], ups[1])))
                runs.append([batch, found.primal.clone(), found.tangent.clone()])
        same_or_as_good(*runs, backend, subject.name)


@pytest.mark.feature(GROUP, "vmap with dropout, randomness='different'")
def test_vmap_with_dropout(backend: str, dtype: torch.dtype, device: str) -> None:
    """torch's own masks, each copy its own; without ``randomness`` torch's error."""
    net = fastmlp.Sequential(nn.Linear(3, 50), nn.Dropout(0.5)).to(device, dtype)
    x = torch.randn(2, 3, device=device).to(dtype).expand(2, 2, 3)
    one, two = func.vmap(net, randomness="different")(x)
    assert not torch.equal(one == 0, two == 0)
    with pytest.raises(RuntimeError, match="randomness"):
        func.vmap(net)(x)


def wide_case(name: str, device: str) -> tuple[Function, Function, Tensor]:
    """Sizes from which on "auto" takes ways of its own on a CPU."""
    if name == "many classes":  # CpuCrossEntropy
        target = torch.randint(512, (4096,), device=device)
        return (
            lambda x: cross_entropy(x, target),
            lambda x: F.cross_entropy(x, target),
            torch.randn(4096, 512, device=device),
        )
    if name == "many rows":  # the transposed one
        target = torch.randint(10, (1100,), device=device)
        return (
            lambda x: cross_entropy(x, target, reduction="none"),
            lambda x: F.cross_entropy(x, target, reduction="none"),
            torch.randn(1100, 10, device=device),
        )
    target, weight = torch.randint(4096, (1024,), device=device), torch.randn(4096, 4, device=device)
    return (
        lambda x: linear_cross_entropy(x, weight, target),
        lambda x: F.cross_entropy(F.linear(x, weight), target),
        torch.randn(1024, 4, device=device),
    )


@pytest.mark.feature(GROUP, "transforms at sizes that 'auto' treats by itself on a CPU", **AUTO)
@pytest.mark.parametrize("name", ["many classes", "many rows", "many logits"])
def test_ways_of_auto(name: str, device: str) -> None:
    ours, theirs, x = wide_case(name, device)

    def all_of(f: Function) -> list[Tensor]:
        leaf = x.clone().requires_grad_()
        ups = torch.tensor([1.0, -0.5], device=device)
        value = f(leaf)
        ups = ups.view(2, *[1] * value.dim()).expand(2, *value.shape).contiguous()
        return [
            func.grad(lambda x: f(x).sum())(x),
            *func.jvp(f, (x,), (torch.ones_like(x),)),
            dual(f, [x]),
            dual(f, [leaf]).detach(),
            func.vmap(f)(torch.stack([x, 0.5 * x])),
            torch.autograd.grad(value, leaf, ups, is_grads_batched=True, retain_graph=True)[0],
            torch.autograd.grad(value.sum(), leaf)[0],
        ]

    with backends.use("auto"):
        found = all_of(ours)
    for i, (a, b) in enumerate(zip(found, all_of(theirs), strict=True)):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6 * b.abs().max().item(), msg=f"result {i}")
