"""The ways a layer's products can go: the one that is asked for runs, and the results are as good."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import fastmlp
from fastmlp import backends
from fastmlp.activations import NONE, TABLE, Act
from fastmlp.backends.base import Undo
from fastmlp.backends.triton_backend import TritonBackend
from fastmlp.kernels.launch import record_launches
from fastmlp.kernels.tiles import decisions
from tests.gradients import check
from tests.numerics import assert_as_good_as_torch
from tests.problems import DTYPES

KERNELS = {"tma": "matmul_kernel", "pointer": "linear_act_kernel", "library": None}
RELU = Act(TABLE["relu"])


def operands(dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor, Tensor]:
    return tuple(torch.randn(size, device=device).to(dtype) for size in ((37, 48), (24, 48), (24,)))


@pytest.mark.parametrize("way", KERNELS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "act", [RELU, Act(TABLE["gelu"]), Act(TABLE["leaky_relu"], -0.2)], ids=lambda a: a.name
)
def test_forward(way: str, dtype: torch.dtype, act: Act, device: str) -> None:
    x, w, b = operands(dtype, device)
    with decisions.force(way), record_launches() as launches:
        y, z = TritonBackend().linear_act(x, w, b, act, True, dtype)
    assert [launch.name for launch in launches] == [KERNELS[way]] * (way != "library")
    exact = F.linear(x.double(), w.double(), b.double())
    assert z is not None
    assert_as_good_as_torch(z, F.linear(x, w, b), exact)
    assert_as_good_as_torch(y, act(F.linear(x, w, b)), act(exact))


@pytest.mark.parametrize("way", KERNELS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("act", [NONE, RELU], ids=lambda a: a.name)
def test_backward(way: str, dtype: torch.dtype, act: Act, device: str) -> None:
    x, w, b = operands(dtype, device)
    grad = torch.randn(37, 24, device=device).to(dtype)
    options: dict[str, Any] = {
        "after": Undo(act, None if act is NONE else F.linear(x, w, b).relu()),
        "before": Undo(RELU, x),
        "bias_dtype": dtype,
        "dtype": dtype,
    }
    with decisions.force(way, "pointer"), record_launches() as launches:
        check(grad, x, w, **options)
    expected = {
        "tma": ["matmul_kernel"] * 2 if act is NONE else ["linear_backward_kernel"],
        "pointer": ["linear_backward_kernel"],
        "library": [],
    }
    assert [launch.name for launch in launches] == expected[way]


def test_what_does_not_fit_goes_the_next_way(device: str) -> None:
    x, w, b = operands(torch.bfloat16, device)
    for second, kernel in (("pointer", ["linear_act_kernel"]), ("library", [])):
        with decisions.force("tma", second), record_launches() as launches:
            TritonBackend().linear_act(x[:, :47], w[:, :47], b, RELU, False, torch.bfloat16)
            TritonBackend().linear_act(x[:, 1:], w[:, 1:], b, RELU, False, torch.bfloat16)
        assert [launch.name for launch in launches] == ["matmul_kernel", *kernel]
    with decisions.force("tma"), pytest.raises(ValueError, match="tma: input: rows or memory not a multiple"):
        TritonBackend().linear_act(x[:, 1:], w[:, 1:], b, RELU, False, torch.bfloat16)


@pytest.mark.parametrize("way", KERNELS)
def test_a_net_trains_either_way(way: str, device: str) -> None:
    """Through the modules, under autocast and without it: gradients as good as plain torch's."""
    net = fastmlp.MLP(40, [64, 32, 16], device=device)
    x = torch.randn(50, 40, device=device)

    def run(net: fastmlp.MLP, x: Tensor, dtype: torch.dtype, backend: str) -> list[Tensor]:
        with backends.use(backend), decisions.force(way, "pointer"):
            with torch.autocast(device, dtype, enabled=dtype == torch.bfloat16):
                y = net(x)
            return [y, *torch.autograd.grad(y.double().square().sum(), list(net.parameters()))]

    exact = run(deepcopy(net).double(), x.double(), torch.float64, "torch")
    for dtype in (torch.float32, torch.bfloat16):
        ours, theirs = (run(net, x, dtype, backend) for backend in ("triton", "torch"))
        for one in zip(ours, theirs, exact):
            assert_as_good_as_torch(*one, f"{dtype}", roundings=6)
