"""mse_loss against torch's own: every path, every argument, and what is left to torch."""

from __future__ import annotations

import inspect
import random
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fastmlp import backends
from fastmlp.functional import mse_loss
from fastmlp.kernels.launch import record_launches
from tests.numerics import assert_as_good_as_torch
from tests.problems import DTYPES, matrix

SHAPES = ((), (7,), (96, 10), (61, 1), (1, 17), (3, 4, 5), (2, 3, 4, 5))


@pytest.fixture
def triton() -> Any:
    with backends.use("triton"):
        yield


def runs(
    function: Callable[..., Tensor], *tensors: Tensor | None, grad: Tensor, **kwargs: Any
) -> list[Tensor]:
    """The loss, and the gradients of input and target."""
    input, target, weight = (
        None if t is None else t.detach().requires_grad_(i < 2) for i, t in enumerate(tensors)
    )
    loss = function(input, target, weight=weight, **kwargs)
    assert input is not None
    assert target is not None
    grad = (grad.expand(loss.shape) if loss.shape else grad.flatten()[0]).to(loss.dtype)
    return [loss, *torch.autograd.grad(loss, (input, target), grad)]


def compare(x: Tensor, t: Tensor, w: Tensor | None, grad: Tensor, **kwargs: Any) -> None:
    """Ours, torch's in the same dtype, and torch's in float64."""
    wide = [None if tensor is None else tensor.double() for tensor in (x, t, w)]
    results = runs(mse_loss, x, t, w, grad=grad, **kwargs), runs(F.mse_loss, x, t, w, grad=grad, **kwargs)
    for ours, theirs, exact in zip(*results, runs(F.mse_loss, *wide, grad=grad, **kwargs)):
        assert_as_good_as_torch(ours, theirs, exact, f"{tuple(x.shape)} {kwargs}", roundings=2)


@pytest.mark.usefixtures("poisoned", "triton")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_shapes_and_weights(reduction: str, dtype: torch.dtype, device: str) -> None:
    for shape in SHAPES:
        x, t, g = (torch.randn(shape, device=device).to(dtype) for _ in range(3))
        w = torch.rand(shape, device=device).to(dtype)
        for weight in (None, w):
            with record_launches() as launches:
                compare(x, t, weight, g, reduction=reduction)
            assert [launch.name for launch in launches] == ["mse_forward_kernel", "mse_backward_kernel"]


@pytest.mark.usefixtures("poisoned", "triton")
@pytest.mark.parametrize("seed", range(8))
def test_layouts(seed: int, device: str) -> None:
    rng = random.Random(seed)
    dtype = rng.choice(DTYPES)
    x, t, w, g = (matrix(rng, 33, 7, dtype, device) for _ in range(4))
    weight = w.abs() if seed % 2 else None
    compare(x, t[:1].expand(33, 7) if seed % 3 else t, weight, g, reduction=["mean", "none", "sum"][seed % 3])


@pytest.mark.usefixtures("triton")
def test_what_is_left_to_torch(device: str) -> None:
    """Its result, its dtype, its warning, and no kernel."""
    x, t = torch.randn(6, 5, device=device), torch.randn(6, 5, device=device)
    wanting = torch.rand(6, 5, device=device).requires_grad_()
    image = torch.randn(2, 3, 4, 5, device=device).to(memory_format=torch.channels_last)
    cases: list[tuple[tuple[Tensor, ...], dict[str, Any]]] = [
        ((x, t.double()), {}),
        ((x.double(), t.double()), {}),
        ((x, t.bfloat16()), {}),
        ((x, t[:1]), {}),
        ((x, t[0, 0]), {}),
        ((x, t), {"weight": wanting}),
        ((x, t), {"weight": torch.rand(6, 5, device=device).double()}),
        ((image, image * 2), {}),
        ((x[:0], t[:0]), {}),
        ((x[:, :0], t[:, :0]), {"reduction": "none"}),
        ((torch.complex(x, x), torch.complex(t, x)), {"reduction": "none", "weight": None}),
    ]
    for args, kwargs in cases:
        found = []
        for function in (mse_loss, F.mse_loss):
            with warnings.catch_warnings(record=True) as told, record_launches() as launches:
                warnings.simplefilter("always")
                try:
                    found.append((function(*args, **kwargs), len(told)))
                except RuntimeError as error:
                    found.append((torch.zeros(()), type(error)))
            assert not launches
        (ours, mine), (theirs, torchs) = found
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)
        assert mine == torchs


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.filterwarnings("ignore:Using a target size:UserWarning")
def test_errors_are_torchs(backend: str, device: str) -> None:
    x = torch.randn(6, 5, device=device)
    for args, kwargs in (
        ((x, x[:4]), {}),
        ((x, x), {"weight": x[0]}),
        ((x, x), {"reduction": "median"}),
        ((x, x), {"reduction": "median", "weight": x}),
        ((x.long(), x.long()), {}),
        ((x, x.to("meta")), {}),
    ):
        kinds = []
        for function in (mse_loss, F.mse_loss):
            with backends.use(backend), pytest.raises(Exception) as caught:  # noqa: PT011
                function(*args, **kwargs)
            kinds.append(caught.type)
        assert kinds[0] is kinds[1]
    with pytest.raises(TypeError, match="target: expected a Tensor, got float"):
        mse_loss(x, 1.0)  # type: ignore[arg-type]


def test_the_signature_is_torchs() -> None:
    ours, theirs = (list(inspect.signature(f).parameters.values()) for f in (mse_loss, F.mse_loss))
    assert [(p.name, p.default, p.kind) for p in ours] == [(p.name, p.default, p.kind) for p in theirs]


@pytest.mark.usefixtures("triton")
@pytest.mark.filterwarnings("ignore:size_average and reduce:UserWarning")
def test_deprecated_arguments(device: str) -> None:
    x, t = torch.randn(6, 5, device=device), torch.randn(6, 5, device=device)
    for arguments in ((False, None), (None, False), (True, True)):
        torch.testing.assert_close(mse_loss(x, t, *arguments), F.mse_loss(x, t, *arguments))


@pytest.mark.usefixtures("triton")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_autocast_runs_it_in_float32(dtype: torch.dtype, device: str) -> None:
    x, t = torch.randn(6, 5, device=device).to(dtype).requires_grad_(), torch.randn(6, 5, device=device)
    with torch.autocast(device, dtype), record_launches() as launches:
        ours, theirs = mse_loss(x, t), F.mse_loss(x, t)
    assert len(launches) == 1
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(torch.autograd.grad(ours, x), torch.autograd.grad(theirs, x))


@pytest.mark.usefixtures("triton")
def test_only_the_gradients_that_are_wanted(device: str) -> None:
    x, t = torch.randn(6, 5, device=device), torch.randn(6, 5, device=device)
    for input, target in ((x, t.clone().requires_grad_()), (x.clone().requires_grad_(), t)):
        (leaf,) = (tensor for tensor in (input, target) if tensor.requires_grad)
        found = [torch.autograd.grad(function(input, target), leaf)[0] for function in (mse_loss, F.mse_loss)]
        torch.testing.assert_close(*found)


@pytest.mark.usefixtures("triton")
def test_a_compiled_graph_has_torchs_op(device: str) -> None:
    graphs: list[Any] = []

    def backend(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph

    x, t = torch.randn(6, 5, device=device), torch.randn(6, 5, device=device)
    found = torch.compile(mse_loss, fullgraph=True, backend=backend)(x, t)
    torch.testing.assert_close(found, F.mse_loss(x, t))
    assert "mse_loss" in graphs[0].code


def test_fx_traces_it(device: str) -> None:
    class Loss(torch.nn.Module):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return mse_loss(x, t, reduction="sum")

    traced = torch.fx.symbolic_trace(Loss())
    assert mse_loss in [node.target for node in traced.graph.nodes]
    x, t = torch.randn(6, 5, device=device), torch.randn(6, 5, device=device)
    assert torch.equal(traced(x, t), mse_loss(x, t, reduction="sum"))
