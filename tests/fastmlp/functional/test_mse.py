"""mse_loss against torch's own: every path, every argument, and what is left to torch."""

from __future__ import annotations

import inspect
import warnings
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fastmlp import backends
from fastmlp.functional import mse_loss
from fastmlp.kernels.launch import record_launches
from tests.compatibility.compare import same_or_as_good
from tests.compatibility.operations import first
from tests.compatibility.problems import Problem
from tests.problems import DTYPES

SHAPES = ((), (7,), (96, 10), (61, 1), (1, 17), (3, 4, 5), (2, 3, 4, 5))


@pytest.fixture
def triton() -> Any:
    with backends.use("triton"):
        yield


@pytest.mark.usefixtures("poisoned", "triton")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_shapes_and_weights(reduction: str, dtype: torch.dtype, device: str) -> None:
    for shape in SHAPES:
        leaves = [torch.randn(shape, device=device).to(dtype) for _ in range(2)]
        for w in (None, torch.rand(shape, device=device).to(dtype)):
            options = {"reduction": reduction, "weight": w}
            problem = Problem(partial(mse_loss, **options), partial(F.mse_loss, **options), leaves)
            with record_launches() as launches:
                found = problem.run(first)
            same_or_as_good(*found, "triton", f"{shape}", roundings=2)
            assert [launch.name for launch in launches] == ["mse_forward_kernel", "mse_backward_kernel"]


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
