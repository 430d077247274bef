"""linear_cross_entropy against linear and cross_entropy in float64: every argument, and all tilings."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fastmlp import backends
from fastmlp.functional import linear_cross_entropy
from fastmlp.kernels.launch import record_launches
from tests.compatibility.compare import same_or_as_good
from tests.compatibility.operations import first
from tests.compatibility.problems import Problem
from tests.memory import peak
from tests.numerics import assert_as_good_as_torch
from tests.problems import DTYPES
from tests.references import linear_cross_entropy as reference

TORCHS = getattr(F, "linear_cross_entropy", None)
needs_torchs = pytest.mark.skipif(TORCHS is None, reason="this torch has no linear_cross_entropy")
BACKENDS = ("triton", "auto")


@pytest.fixture(autouse=True)
def _low_threshold(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a small problem runs in tiles on a CPU, and a tenth of eager's memory is a tenth there too."""
    monkeypatch.setattr("fastmlp.functional.linear_loss._CPU_ELEMENTS", 1)
    monkeypatch.setattr("fastmlp.autograd.tile_sizes._LEAST", 0)


def compare(
    x: Tensor,
    w: Tensor,
    target: Tensor,
    bias: Tensor | None = None,
    workspace: int | None = None,
    **options: Any,
) -> list[Tensor]:
    """Loss and gradients of ours, which torch's own ops are the measure of."""

    def of(function: Callable[..., Tensor], *leaves: Tensor, **more: Any) -> Tensor:
        x, w, *biases = leaves
        labels = target.to(x.dtype) if target.is_floating_point() else target
        return function(x, w, labels, linear_bias=biases[0] if biases else None, **options, **more)

    leaves = [x, w] if bias is None else [x, w, bias]
    ours = partial(of, linear_cross_entropy, workspace=workspace)
    found = Problem(ours, partial(of, reference), leaves).run(first)
    same_or_as_good(*found, "auto", f"{tuple(w.shape)} {workspace}", roundings=2)
    return found[0]


def test_unbatched(device: str) -> None:
    x, w = torch.randn(5, device=device), torch.randn(7, 5, device=device)
    for target in (torch.tensor(3, device=device), torch.rand(7, device=device)):
        for reduction in ("none", "mean"):
            for backend in BACKENDS:
                with backends.use(backend):
                    compare(x, w, target, reduction=reduction)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("more", [(2,), (3, 1)], ids=str)
def test_classes_in_many_places(more: tuple[int, ...], dtype: torch.dtype, backend: str, device: str) -> None:
    """A weight of (C, d1, ..., K), of any of which a row may be ignored; and of all dtypes."""
    x, w, bias = (
        torch.randn(size, device=device).to(dtype) for size in ((7, 5), (61, *more, 5), (61, *more))
    )
    hard = torch.randint(61, (7, *more), device=device)
    hard[::3] = -100
    with backends.use(backend):
        for target in (hard, torch.rand(7, 61, *more, device=device).softmax(1).to(dtype)):
            compare(x, w, target, bias, 1 << 30, label_smoothing=0.1)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_tiles_do_not_change_the_result(backend: str, reduction: str, device: str) -> None:
    """One row or class at a time, some, which leaves tails of both, or all at once."""
    x, w, bias = (torch.randn(size, device=device) for size in ((7, 5), (301, 5), (301,)))
    target = torch.randint(301, (7,), device=device)
    with backends.use(backend):
        whole, *others = (
            compare(x, w, target, bias, size, reduction=reduction) for size in (1 << 30, 3000, 1)
        )
    for other in others:
        for a, b in zip(whole, other, strict=True):
            torch.testing.assert_close(a, b)


def test_signature_is_torchs_and_one_keyword() -> None:
    parameters = list(inspect.signature(linear_cross_entropy).parameters.values())
    assert parameters[-1].name == "workspace"
    assert parameters[-1].kind is inspect.Parameter.KEYWORD_ONLY
    if TORCHS is not None:
        theirs = inspect.signature(TORCHS).parameters.values()
        found = [(p.name, p.default, p.kind) for p in parameters[:-1]]
        assert found == [(p.name, p.default, p.kind) for p in theirs]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("cast", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(backend: str, cast: torch.dtype, device: str) -> None:
    """Of two dtypes: each gradient is in its tensor's own."""
    x, w = torch.randn(70, 16, device=device).bfloat16(), torch.randn(400, 16, device=device) / 4
    target = torch.randint(400, (70,), device=device)
    weight = torch.rand(400, device=device).add_(0.1)

    def of(function: Callable[..., Tensor], dtype: torch.dtype | None = None) -> tuple[Tensor, ...]:
        leaves = [t.detach().to(dtype or t.dtype).requires_grad_() for t in (x, w)]
        with torch.autocast(device, cast, enabled=dtype is None):
            loss = function(*leaves, target, weight=weight.to(dtype or weight.dtype))
        return loss, *torch.autograd.grad(loss, leaves)

    with backends.use(backend):
        found = of(linear_cross_entropy)
    for a, b, c in zip(found, of(reference), of(reference, torch.float64)):
        assert a.dtype == b.dtype
        assert_as_good_as_torch(a.to(cast), b.to(cast), c, f"{tuple(a.shape)}", roundings=2)


@pytest.mark.parametrize("backend", BACKENDS)
def test_offsets(backend: str, device: str) -> None:
    """All logits far from 0, with few digits left: as torch's."""
    x, w, target = (
        torch.ones(4, 1, device=device),
        torch.zeros(300, 1, device=device),
        torch.arange(4, device=device),
    )
    for bias in (1e4, -1e4, 3e38, -float("inf")):
        b = torch.randn(300, device=device) + bias
        with backends.use(backend):
            compare(x, w, target, b, reduction="none")


# Memory.


@pytest.mark.skipif(torch.cuda.is_available(), reason="counts a CPU's allocations")
@pytest.mark.parametrize(
    ("backend", "dtype", "kwargs"),
    [
        ("auto", torch.float32, {}),
        pytest.param("auto", torch.float32, {"label_smoothing": 0.1}, marks=pytest.mark.deep),
        pytest.param("auto", torch.float32, {"reduction": "none"}, marks=pytest.mark.deep),
        pytest.param("auto", torch.bfloat16, {}, marks=pytest.mark.deep),
        pytest.param(
            "auto", torch.bfloat16, {"label_smoothing": 0.1, "reduction": "none"}, marks=pytest.mark.deep
        ),
        pytest.param("triton", torch.float32, {}, marks=pytest.mark.deep),
    ],
    ids=str,
)
def test_a_tenth_of_eagers_memory(backend: str, dtype: torch.dtype, kwargs: dict[str, Any]) -> None:
    """Besides the gradients, at (tokens, hidden, vocabulary) in the proportions of (8192, 4096, 128256)."""
    n, k, c = (128, 64, 2004) if backend == "triton" else (512, 256, 8016)
    x, w = torch.randn(n, k).to(dtype).requires_grad_(), torch.randn(c, k).div_(8).to(dtype).requires_grad_()
    target = torch.randint(c, (n,))

    def run(function: Callable[..., Tensor]) -> object:
        loss = function(x, w, target, **kwargs)
        return torch.autograd.grad(loss.sum(), (x, w))

    results, logits = (x.numel() + w.numel()) * dtype.itemsize, n * c * dtype.itemsize
    eager = peak(lambda: run(reference))
    assert 3 * logits <= eager < 4 * logits, "the counter does not see eager's logits"
    with backends.use(backend):
        assert peak(lambda: run(linear_cross_entropy)) - results <= 0.1 * 3 * logits


# Which code runs.


def test_size_decides_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastmlp.functional.linear_loss._CPU_ELEMENTS", 3000)
    x, w = torch.randn(9, 4, requires_grad=True), torch.randn(1000, 4)
    for rows, name in ((2, "NllLoss"), (9, "LinearCrossEntropy")):
        loss = linear_cross_entropy(x[:rows], w, torch.zeros(rows).long())
        assert loss.grad_fn is not None
        assert loss.grad_fn.name().startswith(name)


@needs_torchs
def test_options_run_torchs_own_chunks() -> None:
    """Where torch's path takes the call; else ours, which needs no options, and no warning."""
    options = torch.nn.LinearCrossEntropyOptions()
    x, w, target = torch.randn(9, 4, requires_grad=True), torch.randn(300, 4), torch.zeros(9).long()
    loss = linear_cross_entropy(x, w, target, options=options)
    assert "chunked" in loss.grad_fn.name()
    ours = linear_cross_entropy(x, w, target, options=options, label_smoothing=0.1)
    assert ours.grad_fn.name() == "LinearCrossEntropyBackward"


def test_options_of_a_torch_without_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(F, "linear_cross_entropy", raising=False)
    with pytest.raises(TypeError, match="options"):
        linear_cross_entropy(torch.ones(2, 3), torch.ones(4, 3), torch.zeros(2).long(), options=object())


# Errors.

X, W, T = torch.ones(4, 3), torch.ones(300, 3), torch.tensor([0, 1, 2, 4])
BAD: dict[str, tuple[tuple[Any, ...], dict[str, Any], str]] = {
    "an input of 3 dimensions": ((X[None], W, T), {}, "input"),
    "a weight vector": ((X, W[0], T), {}, "linear_weight"),
    "features that differ": ((X, W[:, :2], T), {}, "linear_weight"),
    "a short bias": ((X, W, T), {"linear_bias": torch.ones(3)}, "linear_bias"),
    "unbatched and more dimensions": ((X[0], W[:, None], T), {}, "input"),
    "probabilities and ignore_index": ((X, W, torch.ones(4, 300)), {"ignore_index": -100}, "ignore_index"),
    "too few targets": ((X, W, T[:3]), {}, "target|batch_size"),
    "int32 targets": ((X, W, T.int()), {}, "target|Int"),
    "float64 weights": ((X, W.double(), T), {}, "dtype"),
    "float64 class weights": ((X, W, T), {"weight": torch.ones(300).double()}, "Double|weight"),
    "a short class weight": ((X, W, T), {"weight": torch.ones(3)}, "weight"),
    "label_smoothing of 1.5": ((X, W, T), {"label_smoothing": 1.5}, "label_smoothing"),
    "an unknown reduction": ((X, W, T), {"reduction": "median"}, "median"),
    "a target that is no class": ((X, W, T + 299), {}, "out of bounds"),
    "integer input": ((X.long(), W.long(), T), {}, "Long"),
    "half probabilities": ((X, W, torch.ones(4, 299).half()), {}, "target|size"),
}


@pytest.mark.skipif(
    torch.cuda.is_available(), reason="the kernels cannot raise for a target that is no class"
)
@pytest.mark.parametrize("name", BAD)
def test_bad_input_raises_what_torch_raises(name: str) -> None:
    arguments, kwargs, match = BAD[name]
    expected: type[Exception] = Exception
    if TORCHS is not None:
        with pytest.raises(Exception) as theirs:  # noqa: PT011
            TORCHS(*arguments, **kwargs)
        expected = theirs.type
    for backend in BACKENDS:
        if name == "a target that is no class" and backend == "triton":
            continue
        with backends.use(backend), record_launches() as seen, pytest.raises(expected, match=match):
            linear_cross_entropy(*arguments, **kwargs)
        assert not seen


def test_a_workspace_of_nothing() -> None:
    with pytest.raises(ValueError, match="workspace"):
        linear_cross_entropy(X, W, T, workspace=0)


def test_a_bias_is_no_class_weight(device: str) -> None:
    """One call after the other with the same numbers in another place, by the kernels."""
    x, w, v = torch.randn(8, 5, device=device), torch.randn(4, 5, device=device), torch.rand(4, device=device)
    t = torch.randint(4, (8,), device=device)
    with backends.use("triton"):
        for _ in range(3):
            by_bias = linear_cross_entropy(x, w, t, linear_bias=v)
            by_weight = linear_cross_entropy(x, w, t, weight=v)
            torch.testing.assert_close(by_bias, F.cross_entropy(x @ w.t() + v, t))
            torch.testing.assert_close(by_weight, F.cross_entropy(x @ w.t(), t, v))
