"""cross_entropy against torch's own: every argument, errors and gradients; see `test_loss_paths` too."""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fastmlp import backends
from fastmlp.backends.torch_backend import TorchBackend
from fastmlp.functional import cross_entropy
from fastmlp.kernels.launch import record_launches
from tests.numerics import assert_as_good_as_torch
from tests.problems import DTYPES
from tests.references import cross_entropy as reference

SHAPES = ((1, 10), (96, 10), (7, 1), (61, 257), (5, 3, 4), (2, 10, 3, 5), (3, 4, 2, 1, 3), (10,))
CPU_LARGE = (1100, 1000)  # what the chunked passes of the CPU take, with their threshold lowered


@pytest.fixture(autouse=True)
def _low_threshold(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a megabyte tests what 32 MB run by default."""
    monkeypatch.setattr("fastmlp.functional.loss._CPU_ELEMENTS", 1 << 20)


@pytest.fixture
def triton() -> Iterator[None]:
    with backends.use("triton"):
        yield


def indices(shape: tuple[int, ...], device: str) -> Tensor:
    """Class indices for logits of ``shape``."""
    classes = shape[0] if len(shape) == 1 else shape[1]
    return torch.randint(classes, shape[:1] + shape[2:] if len(shape) > 1 else (), device=device)


def compare(x: Tensor, target: Tensor, grad: Tensor | None = None, **kwargs: Any) -> None:
    """Loss and gradient of ours, of torch's in the same dtype, and of torch's in float64."""
    results = []
    for function, dtype in ((cross_entropy, x.dtype), (reference, x.dtype), (reference, torch.float64)):
        logits = x.detach().to(dtype).requires_grad_()
        soft = {k: v.to(dtype) if isinstance(v, Tensor) else v for k, v in kwargs.items()}
        t = target.to(dtype) if target.is_floating_point() else target
        loss = function(logits, t, **soft)
        upstream = torch.ones_like(loss) if grad is None else grad.to(loss)
        results.append((loss, torch.autograd.grad(loss, logits, upstream)[0]))
    for ours, theirs, exact in zip(*results):
        assert_as_good_as_torch(ours, theirs, exact, f"{tuple(x.shape)} {x.dtype} {list(kwargs)}")


def test_signature_is_torchs_and_two_keywords() -> None:
    theirs = inspect.signature(F.cross_entropy).parameters.values()
    ours = list(inspect.signature(cross_entropy).parameters.values())
    assert [(p.name, p.default, p.kind) for p in ours[:-2]] == [(p.name, p.default, p.kind) for p in theirs]
    assert [(p.name, p.kind) for p in ours[-2:]] == [
        (n, inspect.Parameter.KEYWORD_ONLY) for n in ("z_loss", "inplace")
    ]


@pytest.mark.few(12)
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("backend", ["triton", "torch"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes_dtypes_and_arguments(
    shape: tuple[int, ...], dtype: torch.dtype, backend: str, device: str
) -> None:
    """(C,), (N, C) and (N, C, d1, ...); indices and probabilities; both paths."""
    rng = random.Random(f"{shape}{dtype}")
    x = torch.randn(shape, device=device).to(dtype)
    classes = shape[0] if len(shape) == 1 else shape[1]
    soft = torch.rand(shape, device=device).to(dtype)
    with backends.use(backend):
        for target in (indices(shape, device), soft):
            kwargs: dict[str, Any] = {"reduction": rng.choice(["none", "mean", "sum"])}
            compare(x, target, **kwargs)
            kwargs["label_smoothing"] = 0.1
            if not target.is_floating_point():
                kwargs["ignore_index"] = rng.randrange(classes) if classes > 1 else -100
            compare(x, target, weight=torch.rand(classes, device=device).to(dtype) + 0.1, **kwargs)


@pytest.mark.parametrize("backend", ["triton", "torch"])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_z_loss(backend: str, reduction: str, device: str) -> None:
    x = 3 * torch.randn(33, 7, device=device)
    hard = torch.randint(7, (33,), device=device)
    hard[::4] = -100
    with backends.use(backend):
        for target in (hard, torch.rand(33, 7, device=device)):
            compare(x, target, z_loss=0.3, reduction=reduction)


@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_z_loss_is_divided_by_the_targets_weights(backend: str, device: str) -> None:
    """The mean's denominator is torch's; and byte targets index as int64 ones do."""
    x, target = torch.randn(9, 4, device=device), torch.randint(4, (9,), device=device)
    weight = torch.rand(4, device=device) + 0.1
    expected = reference(x, target, weight, z_loss=0.3)
    with backends.use(backend):
        torch.testing.assert_close(cross_entropy(x, target, weight, z_loss=0.3), expected)
        torch.testing.assert_close(cross_entropy(x, target.byte(), weight, z_loss=0.3), expected)


@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_z_loss_of_half_precision_does_not_overflow(backend: str, device: str) -> None:
    """lse² passes float16's largest number at logits of 256."""
    x = (torch.randn(5, 4, device=device) + 300).half()
    target = torch.randint(4, (5,), device=device)
    with backends.use(backend):
        loss = cross_entropy(x, target, z_loss=1e-3)
    torch.testing.assert_close(loss.double(), reference(x.double(), target, z_loss=1e-3), rtol=2e-3, atol=0)


@pytest.mark.usefixtures("triton")
@pytest.mark.parametrize("kind", ["per row", "stride 0", "transposed", "zero", "negative scalar"])
def test_upstream_gradients(kind: str, device: str) -> None:
    x, target = torch.randn(6, 10, 4, device=device), torch.randint(10, (6, 4), device=device)
    grad = {
        "per row": torch.randn(6, 4, device=device),
        "stride 0": torch.full((1, 1), 0.7, device=device).expand(6, 4),
        "transposed": torch.randn(4, 6, device=device).t(),
        "zero": torch.zeros(6, 4, device=device),
        "negative scalar": torch.tensor(-3.0, device=device),
    }[kind]
    compare(x, target, grad, reduction="none" if grad.dim() else "mean")


@pytest.mark.parametrize(("backend", "shape"), [("triton", (9, 5)), ("auto", CPU_LARGE)])
def test_second_backward(shape: tuple[int, int], backend: str, device: str) -> None:
    x = torch.randn(shape, device=device, requires_grad=True)
    target = indices(shape, device)
    with backends.use(backend):
        loss = cross_entropy(x, target)
        first, before = torch.autograd.grad(loss, x, retain_graph=True)[0], x.detach().clone()
        second = torch.autograd.grad(loss, x, retain_graph=True)[0]
    assert torch.equal(first, second)
    assert torch.equal(x, before), "the logits were overwritten"


@pytest.mark.parametrize(
    ("backend", "shape"), [("triton", (6, 5)), ("triton", (3, 5, 4)), ("auto", CPU_LARGE)]
)
@pytest.mark.parametrize(
    "kwargs",
    [{}, {"label_smoothing": 0.1, "reduction": "sum"}, {"z_loss": 0.2}, {"reduction": "none"}],
    ids=str,
)
def test_double_backward(shape: tuple[int, ...], backend: str, kwargs: dict[str, Any], device: str) -> None:
    """A gradient penalty through the loss is torch's: for the logits, and for the upstream gradient."""
    data, target = torch.randn(shape, device=device), indices(shape, device)

    def penalty(function: Callable[..., Tensor]) -> tuple[Tensor, ...]:
        x = data.clone().requires_grad_()
        loss = function(x, target, **kwargs)
        upstream = torch.linspace(0.5, 2, loss.numel(), device=device).view_as(loss).requires_grad_()
        (dx,) = torch.autograd.grad(loss, x, upstream, create_graph=True)
        return torch.autograd.grad(dx.square().sum() * 1e3, (x, upstream))

    with backends.use(backend):
        ours = penalty(cross_entropy)
    for a, b in zip(ours, penalty(reference)):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", ["triton", "torch"])
@pytest.mark.parametrize("shape", [(0, 5), (3, 5, 0), (0, 5, 2)], ids=str)
@pytest.mark.parametrize("z_loss", [0.0, 0.1])
def test_no_rows(shape: tuple[int, ...], backend: str, z_loss: float, device: str) -> None:
    x = torch.randn(shape, device=device, requires_grad=True)
    for target in (torch.zeros(shape[:1] + shape[2:], dtype=torch.long, device=device), x.detach()):
        for reduction in ("none", "mean", "sum"):
            with backends.use(backend):
                loss = cross_entropy(x, target, reduction=reduction, z_loss=z_loss)
            torch.testing.assert_close(
                loss, reference(x, target, reduction=reduction, z_loss=z_loss), equal_nan=True
            )
            assert torch.autograd.grad(loss.sum(), x)[0].shape == x.shape


@pytest.mark.parametrize(("backend", "shape"), [("triton", (6, 5)), ("auto", CPU_LARGE)])
def test_inplace(shape: tuple[int, int], backend: str, device: str) -> None:
    """The gradient takes the logits' memory, and using the logits again is an error, not a wrong number."""
    x, target = torch.randn(shape, device=device, requires_grad=True), indices(shape, device)
    expected = torch.autograd.grad(F.cross_entropy(x, target), x)[0]
    with backends.use(backend):
        logits = x * 1
        loss = cross_entropy(logits, target, inplace=True)
        version = logits._version
        (grad,) = torch.autograd.grad(loss, x, retain_graph=True)
        assert logits._version > version
        torch.testing.assert_close(logits.detach(), grad)
        torch.testing.assert_close(grad, expected)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


@pytest.mark.usefixtures("triton")
def test_inplace_where_memory_is_shared(device: str) -> None:
    """Expanded logits have one element for many gradients: these get memory of their own."""
    x, target = torch.randn(1, 5, device=device, requires_grad=True), torch.tensor([0, 1, 4], device=device)
    expected = torch.autograd.grad(F.cross_entropy(x.expand(3, 5), target), x)[0]
    loss = cross_entropy((x * 1).expand(3, 5), target, inplace=True)
    torch.testing.assert_close(torch.autograd.grad(loss, x)[0], expected)


@pytest.mark.usefixtures("triton")
def test_the_result_has_torchs_dtype(device: str) -> None:
    """Probabilities promote as in torch; autocast computes in float32."""
    x, index = torch.randn(4, 5, device=device).half(), torch.tensor([0, 1, 2, 4], device=device)
    soft = torch.rand(4, 5, device=device)
    for logits in (x, x.float()):
        for target in (index, soft, soft.half(), soft.double()):
            expected = F.cross_entropy(logits, target)
            got = cross_entropy(logits, target)
            assert got.dtype == expected.dtype, f"{logits.dtype}, {target.dtype}"
            torch.testing.assert_close(got, expected, rtol=2e-3, atol=1e-3)


@pytest.mark.parametrize("backend", ["triton", "torch"])
@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.bfloat16], ids=str)
def test_autocast(backend: str, weight_dtype: torch.dtype, device: str) -> None:
    x = torch.randn(9, 5, device=device).bfloat16().requires_grad_()
    target, weight = torch.randint(5, (9,), device=device), torch.rand(5, device=device).to(weight_dtype)
    with torch.autocast(device, torch.bfloat16):
        expected = F.cross_entropy(x, target, weight)
        with backends.use(backend):
            loss = cross_entropy(x, target, weight)
    assert loss.dtype == expected.dtype == torch.float32
    torch.testing.assert_close(loss, expected)
    got, wanted = (torch.autograd.grad(value, x)[0] for value in (loss, expected))
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got, wanted)


@pytest.mark.usefixtures("triton")
def test_float64_under_autocast_stays_float64(device: str) -> None:
    x, target = torch.randn(4, 5, device=device).double(), torch.randint(5, (4,), device=device)
    with torch.autocast(device, torch.bfloat16):
        assert torch.equal(cross_entropy(x, target), F.cross_entropy(x, target))


DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def ones(*shape: int) -> Tensor:
    return torch.ones(shape, device=DEVICE)


X, T = ones(4, 5), torch.tensor([0, 1, 2, 4], device=DEVICE)
BAD: dict[str, tuple[tuple[Any, ...], dict[str, Any], str]] = {
    "too few targets": ((X, T[:3]), {}, "target"),
    "a column of targets": ((X, T[:, None]), {}, "target"),
    "targets of a wrong spatial size": ((X[:, :, None].expand(4, 5, 3), ones(4, 2).long()), {}, "target"),
    "int32 targets": ((X, T.int()), {}, "target|scalar type"),
    "boolean targets": ((X, T.bool()), {}, "target|scalar type"),
    "probabilities of a wrong shape": ((X, X[:3]), {}, "target|batch_size"),
    "probabilities and an ignored class": ((X, X), {"ignore_index": 0}, "ignore_index"),
    "a short weight": ((X, T, ones(4)), {}, "weight"),
    "a matrix as weight": ((X, T, ones(5, 1)), {}, "weight"),
    "a float64 weight": ((X, T, ones(5).double()), {}, "weight|Double"),
    "integer logits": ((X.long(), T), {}, "Long"),
    "label_smoothing of 1.5": ((X, T), {"label_smoothing": 1.5}, "label_smoothing"),
    "an unknown reduction": ((X, T), {"reduction": "median"}, "median"),
    "a target on another device": ((X, T.to("meta")), {}, "meta"),
    "a weight on another device": ((X, T, torch.ones(5, device="meta")), {}, "meta"),
    "a target that is no tensor": ((X, [0, 1, 2, 4]), {}, "target"),
    "logits that are no tensor": (([[1.0]], T), {}, "input"),
}


@pytest.mark.parametrize("backend", ["triton", "auto"])
@pytest.mark.parametrize("name", BAD)
def test_bad_input_raises_what_torch_raises(name: str, backend: str) -> None:
    """The same type of error, naming the argument, before anything is launched."""
    args, kwargs, match = BAD[name]
    with pytest.raises(Exception) as theirs:  # noqa: PT011
        F.cross_entropy(*args, **kwargs)
    with backends.use(backend), record_launches() as launches, pytest.raises(theirs.type, match=match):
        cross_entropy(*args, **kwargs)
    assert not launches


@pytest.mark.usefixtures("triton")
def test_a_textbook_step_is_two_launches(device: str) -> None:
    x = torch.randn(256, 10, device=device, requires_grad=True)
    with record_launches() as launches:
        cross_entropy(x, torch.randint(10, (256,), device=device)).backward()
    assert len(launches) == 2, [launch.name for launch in launches]


# The chunked passes of the CPU, in plain torch.


@pytest.fixture
def cpu_calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Grows with every loss that the chunked passes compute; "auto" is the backend."""
    calls: list[str] = []
    passes = TorchBackend.cross_entropy_with_grad

    def spy(*args: Any, **kwargs: Any) -> Any:
        calls.append("passes")
        return passes(*args, **kwargs)

    monkeypatch.setattr(TorchBackend, "cross_entropy_with_grad", spy)
    return calls


def test_size_decides_on_a_cpu(cpu_calls: list[str]) -> None:
    x, target = torch.randn(CPU_LARGE, requires_grad=True), indices(CPU_LARGE, "cpu")
    cross_entropy(torch.randn(256, 10, requires_grad=True), torch.zeros(256).long())
    cross_entropy(x, target, weight=torch.ones(CPU_LARGE[1]), label_smoothing=0.1)
    cross_entropy(x, target, label_smoothing=0.1)
    cross_entropy(x, x.detach().softmax(1))
    cross_entropy(x.double(), target)
    cross_entropy(x.detach(), target)
    assert not cpu_calls
    cross_entropy(x, target)
    cross_entropy(x, target, weight=torch.ones(CPU_LARGE[1]))
    assert len(cpu_calls) == 2


@pytest.mark.parametrize("shape", [CPU_LARGE, (33, 33_000), (2, 600_000)], ids=str)
@pytest.mark.parametrize(("scale", "offset"), [(1, 0), (100, 0), (1e4, 0), (1, 1e4), (1, -1e4)])
@pytest.mark.parametrize("kwargs", [{}, {"reduction": "sum"}, {"reduction": "none"}], ids=str)
def test_cpu_passes(
    shape: tuple[int, int], scale: float, offset: float, kwargs: dict[str, Any], cpu_calls: list[str]
) -> None:
    """As exact as torch, far beyond 87, where the softmax of a rare class is 0."""
    x = torch.randn(shape) * scale + offset
    target = indices(shape, "cpu")
    target[::3] = -100
    compare(x, target, **kwargs)
    assert cpu_calls


def test_cpu_passes_special_values(cpu_calls: list[str]) -> None:
    x = torch.randn(CPU_LARGE)
    target = indices(CPU_LARGE, "cpu")
    target[:6] = 1
    x[0, 0], x[1, 1], x[2, 2], x[3] = (-float("inf"), -float("inf"), float("inf"), -float("inf"))
    x[4, 0], x[5] = float("nan"), 3e38
    compare(x, target, reduction="none")
    assert cpu_calls


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_cpu_passes_with_class_weights(reduction: str, cpu_calls: list[str]) -> None:
    x, target = torch.randn(CPU_LARGE), indices(CPU_LARGE, "cpu")
    target[::3] = -100
    weight = torch.rand(CPU_LARGE[1])
    weight[target[1]] = 0
    compare(x, target, weight=weight, reduction=reduction)
    assert cpu_calls
    compare(x, target, weight=weight, reduction=reduction, z_loss=0.1)  # these two once forgot the weight
    leaf = x.requires_grad_()
    losses = partial(cross_entropy, inplace=True), F.cross_entropy
    grads = [torch.autograd.grad(f(leaf * 1, target, weight).sum(), leaf)[0] for f in losses]
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("upstream", [0.0, 2.5, "stride 0", "rows"])
def test_cpu_passes_with_upstream_gradients(reduction: str, upstream: float | str) -> None:
    """Of every kind, and twice: the first takes the buffer of the forward, the second makes it again."""
    x, target = torch.randn(CPU_LARGE, requires_grad=True), indices(CPU_LARGE, "cpu")
    ours, theirs = (f(x, target, reduction=reduction) for f in (cross_entropy, F.cross_entropy))
    grad = torch.full_like(ours, upstream) if isinstance(upstream, float) else torch.rand_like(ours)
    if upstream == "stride 0":
        grad = torch.tensor(0.7).expand(ours.shape)
    (expected,) = torch.autograd.grad(theirs, x, grad)
    for _ in range(2):
        (dx,) = torch.autograd.grad(ours, x, grad, retain_graph=True)
        torch.testing.assert_close(dx, expected, rtol=1e-5, atol=1e-7)
    torch.autograd.grad(ours, x, grad)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(ours, x, grad)


@pytest.mark.parametrize("kwargs", [{}, {"reduction": "sum"}, {"reduction": "none"}], ids=str)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("classes", [1, 10, 32])
def test_cpu_few_classes(kwargs: dict[str, Any], weighted: bool, classes: int) -> None:
    x = torch.randn(1030, classes) * 100
    target = indices(x.shape, "cpu")
    target[::3] = -100
    x[0], x[1, 0], x[4] = -float("inf"), float("inf"), float("nan")
    weight = torch.rand(classes) + 0.1 if weighted else None
    compare(x[5:], target[5:], weight=weight, **kwargs)
    compare(x, target, reduction="none")
