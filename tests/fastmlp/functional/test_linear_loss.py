"""linear_cross_entropy against linear and cross_entropy in float64: every argument, and all tilings."""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fastmlp import backends
from fastmlp.functional import linear_cross_entropy
from fastmlp.kernels.launch import record_launches
from tests.memory import peak
from tests.numerics import assert_as_good_as_torch
from tests.problems import DTYPES, matrix, vector
from tests.references import linear_cross_entropy as reference

TORCHS = getattr(F, "linear_cross_entropy", None)
needs_torchs = pytest.mark.skipif(TORCHS is None, reason="this torch has no linear_cross_entropy")
BACKENDS = ("triton", "auto")


@pytest.fixture(autouse=True)
def _low_threshold(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a small problem runs in tiles on a CPU, and a tenth of eager's memory is a tenth there too."""
    monkeypatch.setattr("fastmlp.functional.linear_loss._CPU_ELEMENTS", 1)
    monkeypatch.setattr("fastmlp.autograd.tile_sizes._LEAST", 0)


@dataclass(frozen=True)
class Problem:
    """Arguments of the loss."""

    x: Tensor
    w: Tensor
    target: Tensor
    linear_bias: Tensor | None = None
    weight: Tensor | None = None
    reduction: str = "mean"
    ignore_index: int | None = None
    label_smoothing: float = 0.0
    workspace: int | None = None
    upstream: Tensor | None = None

    def grads(self, function: Callable[..., Tensor], dtype: torch.dtype) -> list[Tensor]:
        """Loss and gradients of x, w and the bias in ``dtype``."""

        def cast(tensor: Tensor | None) -> Any:
            return None if tensor is None else tensor.detach().to(dtype)

        leaves = [cast(t).requires_grad_() for t in (self.x, self.w, self.linear_bias) if t is not None]
        target = cast(self.target) if self.target.is_floating_point() else self.target
        kwargs = {
            "reduction": self.reduction,
            "ignore_index": self.ignore_index,
            "label_smoothing": self.label_smoothing,
            "weight": cast(self.weight),
        }
        if function is linear_cross_entropy:
            kwargs["workspace"] = self.workspace
        bias = leaves[2] if len(leaves) > 2 else None
        loss = function(leaves[0], leaves[1], target, linear_bias=bias, **kwargs)
        upstream = torch.ones_like(loss) if self.upstream is None else cast(self.upstream).expand_as(loss)
        return [loss, *torch.autograd.grad(loss, leaves, upstream)]

    def check(self, what: str = "", roundings: int = 2) -> None:
        """Ours is never worse than twice torch's own error; the logits are rounded, and so is dlogits.

        In float64 torch's result stands for the exact one, though its softmax is good to 20 units alone.
        """
        dtype = self.x.dtype
        roundings = 64 if dtype == torch.float64 else roundings
        results = (
            self.grads(linear_cross_entropy, dtype),
            self.grads(reference, dtype),
            self.grads(reference, torch.float64),
        )
        for name, a, b, c in zip(("loss", "dx", "dw", "db"), *results):
            assert_as_good_as_torch(a, b, c, f"{name} {what} {tuple(self.w.shape)}", roundings)


def draw(seed: int, dtype: torch.dtype, device: str, few: bool = False) -> Problem:
    """A random problem: sizes, layouts, and every argument; of ``few`` tiles, for an interpreter."""
    rng = random.Random(f"{seed}{dtype}")
    torch.manual_seed(seed)
    n, c, k = rng.choice([1, 2, 7, 33]), rng.choice([1, 3, 61, 257, 300]), rng.choice([1, 5, 16, 33])
    more = rng.choice([(), (), (), (2,), (3, 1)])
    d = 1
    for size in more:
        d *= size
    w = matrix(rng, c * d, k, dtype, device).mul_(k**-0.5)
    x = matrix(rng, n, k, dtype, device)
    probabilities = rng.random() < 0.3
    ignore_index = None if probabilities else rng.choice([None, -100, 0, c - 1])
    if probabilities:
        target = torch.rand(n, c, *more, device=device).softmax(1).to(dtype)
    else:
        target = torch.randint(c, (n, *more), device=device)
        if rng.random() < 0.5:
            ignored = -100 if ignore_index is None else ignore_index
            target = torch.where(torch.rand(target.shape, device=device) < 0.3, ignored, target)
    reduction = rng.choice(["none", "mean", "sum"])
    bytes_of_logits = n * c * d * dtype.itemsize
    upstream = (
        torch.randn(n, *more, device=device) if reduction == "none" else torch.tensor(-0.7, device=device)
    )
    if rng.random() < 0.2:
        upstream = torch.tensor(rng.choice([0.0, 1.0]), device=device)  # of stride 0
    return Problem(
        x,
        w.reshape(c, *more, k),
        target,
        vector(rng, c * d, dtype, device).reshape(c, *more) if rng.random() < 0.5 else None,
        torch.rand(c, device=device).add_(0.1).to(dtype) if rng.random() < 0.4 else None,
        reduction,
        ignore_index,
        rng.choice([0.0, 0.0, 0.1, 1.0]),
        rng.choice([bytes_of_logits // 2, 1 << 30] if few else [None, 1, bytes_of_logits, 1 << 30]),
        upstream.to(dtype),
    )


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
@pytest.mark.parametrize("block", range(2))
def test_random_problem(dtype: torch.dtype, backend: str, block: int, device: str) -> None:
    """2 x 4 x (4 + 10) = 112 problems: every argument, one row or class a tile, some, or all at once."""
    few = backend == "triton"
    count = 4 if few else 10
    for seed in range(count * block, count * block + count):
        with backends.use(backend):
            draw(seed, dtype, device, few).check(f"seed {seed}")


def test_unbatched(device: str) -> None:
    x, w = torch.randn(5, device=device), torch.randn(7, 5, device=device)
    for target in (torch.tensor(3, device=device), torch.rand(7, device=device)):
        for reduction in ("none", "mean"):
            for backend in BACKENDS:
                with backends.use(backend):
                    Problem(x, w, target, reduction=reduction).check()


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
            Problem(x, w, target, b, reduction="none").check(f"bias {bias}")


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


def test_tiles_do_not_change_the_result(device: str) -> None:
    problem = draw(3, torch.float32, device)
    whole, small = (
        replace(problem, workspace=size).grads(linear_cross_entropy, torch.float32) for size in (1 << 30, 1)
    )
    for a, b in zip(whole, small):
        torch.testing.assert_close(a, b)


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
