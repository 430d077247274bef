"""cross_entropy against torch's own: every argument, errors and gradients; see `test_loss_paths` too."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
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
from tests.compatibility.compare import same_or_as_good
from tests.compatibility.operations import first, torchs_cross_entropy
from tests.compatibility.problems import Problem
from tests.references import cross_entropy as reference

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


def compare(x: Tensor, target: Tensor, **kwargs: Any) -> None:
    """Loss and gradient of ours, of torch's in the same dtype, and of torch's in float64."""
    ours, torchs = (partial(f, target=target, **kwargs) for f in (cross_entropy, torchs_cross_entropy))
    found = Problem(ours, torchs, [x]).run(first)
    same_or_as_good(*found, "auto", f"{tuple(x.shape)} {x.dtype} {list(kwargs)}", roundings=1)


def test_signature_is_torchs_and_two_keywords() -> None:
    theirs = inspect.signature(F.cross_entropy).parameters.values()
    ours = list(inspect.signature(cross_entropy).parameters.values())
    assert [(p.name, p.default, p.kind) for p in ours[:-2]] == [(p.name, p.default, p.kind) for p in theirs]
    assert [(p.name, p.kind) for p in ours[-2:]] == [
        (n, inspect.Parameter.KEYWORD_ONLY) for n in ("z_loss", "inplace")
    ]


@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_z_loss_of_half_precision_does_not_overflow(backend: str, device: str) -> None:
    """lse² passes float16's largest number at logits of 256."""
    x = (torch.randn(5, 4, device=device) + 300).half()
    target = torch.randint(4, (5,), device=device)
    with backends.use(backend):
        loss = cross_entropy(x, target, z_loss=1e-3)
    torch.testing.assert_close(loss.double(), reference(x.double(), target, z_loss=1e-3), rtol=2e-3, atol=0)


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
def test_autocast(backend: str, device: str) -> None:
    """A weight in another dtype than the logits."""
    x = torch.randn(9, 5, device=device).bfloat16().requires_grad_()
    target, weight = torch.randint(5, (9,), device=device), torch.rand(5, device=device)
    with torch.autocast(device, torch.bfloat16):
        expected = F.cross_entropy(x, target, weight)
        with backends.use(backend):
            loss = cross_entropy(x, target, weight)
    assert loss.dtype == expected.dtype == torch.float32
    torch.testing.assert_close(loss, expected)
    got, wanted = (torch.autograd.grad(value, x)[0] for value in (loss, expected))
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got, wanted)


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


def test_cpu_passes_with_class_weights(cpu_calls: list[str]) -> None:
    """In place, where they were once forgotten; and one of 0."""
    x, target = torch.randn(CPU_LARGE), indices(CPU_LARGE, "cpu")
    weight = torch.rand(CPU_LARGE[1])
    weight[target[1]] = 0
    compare(x, target, weight=weight)
    assert cpu_calls
    x.requires_grad_()
    losses = partial(cross_entropy, inplace=True), F.cross_entropy
    grads = [torch.autograd.grad(f(x * 1, target, weight), x)[0] for f in losses]
    torch.testing.assert_close(*grads)
