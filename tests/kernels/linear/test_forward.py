"""The forward kernel against float64 and against torch's own op."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fastmlp.activations import NAMES, NONE, TABLE, Act
from fastmlp.kernels.common import arguments
from fastmlp.kernels.common.arguments import Source
from fastmlp.kernels.launch import record_launches
from fastmlp.kernels.linear.forward import linear_act
from tests.numerics import assert_as_good_as_torch
from tests.problems import DTYPES, SIZES, activation, matrix, vector


def forward(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    act: Act,
    keep_z: bool,
    dtype: torch.dtype = torch.float32,
    precision: str = "ieee",
) -> tuple[Tensor, Tensor | None]:
    f = arguments.activation(act.name, act.slope, act.weight)
    return linear_act(Source(arguments.matrix(x)), w, bias, f, keep_z, dtype, precision)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_random_problem(name: str, dtype: torch.dtype, seed: int, device: str) -> None:
    """12 x 9 x 3 = 324 problems: values of Y and Z, never worse than twice torch's error."""
    rng = random.Random(f"{name}{dtype}{seed}")
    m, n, k = (rng.choice(SIZES) for _ in range(3))
    x, w = matrix(rng, m, k, dtype, device), matrix(rng, n, k, dtype, device)
    bias = vector(rng, n, dtype, device) if rng.random() < 0.7 else None
    act = activation(rng, name, n, dtype, device)
    y, z = forward(x, w, bias, act, True, dtype)

    z_torch = F.linear(x, w, bias)
    z_exact = F.linear(x.double(), w.double(), None if bias is None else bias.double())
    exact = act._replace(weight=None if act.weight is None else act.weight.double())
    assert z is not None
    assert_as_good_as_torch(z, z_torch, z_exact, f"z {(m, n, k)}")
    assert_as_good_as_torch(y, act(z_torch), exact(z_exact), f"y {(m, n, k)}")


@pytest.mark.parametrize("name", NAMES)
def test_special_values(name: str, device: str) -> None:
    """Infinities, NaN and numbers whose exp overflows give what torch gives: each is a row."""
    inf, nan = float("inf"), float("nan")
    x = torch.tensor([inf, -inf, nan, 1e30, -1e30, 0.0, 88.7, -104.0], device=device)[:, None]
    one = torch.ones(1, 1, device=device)
    act = Act(TABLE[name], 0.1 if name == "leaky_relu" else 0.0, one[0] / 4 if name == "prelu" else None)
    y, _ = forward(x, one, None, act, False)
    torch.testing.assert_close(y, act(x), equal_nan=True, rtol=1e-6, atol=1e-37)


def test_mixed_dtypes_round_once_in_the_kernel(device: str) -> None:
    """Autocast's float32 weights with bf16 compute: no cast is launched, the result is autocast's."""
    x, w, b = torch.randn(33, 70), torch.randn(20, 70), torch.randn(20)
    x, w, b = x.to(device), w.to(device), b.to(device)
    with record_launches() as launches:
        y, _ = forward(x, w, b, Act(TABLE["relu"]), False, torch.bfloat16)
    half = [t.bfloat16() for t in (x, w, b)]
    assert len(launches) == 1
    exact = F.linear(half[0].double(), half[1].double(), b.double()).relu()
    assert_as_good_as_torch(y, F.linear(*half).relu(), exact)


def test_stride_0_input(device: str) -> None:
    x, w = torch.randn(1, 40, device=device).expand(50, 40), torch.randn(3, 40, device=device)
    y, _ = forward(x, w, None, NONE, False)
    assert_as_good_as_torch(y, F.linear(x, w), F.linear(x.double(), w.double()))


def test_z_is_written_only_when_asked(device: str) -> None:
    x, w = torch.randn(4, 8, device=device), torch.randn(2, 8, device=device)
    assert forward(x, w, None, Act(TABLE["gelu"]), False)[1] is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="TF32 exists on a GPU's tensor cores alone")
def test_tf32_is_as_good_as_torchs() -> None:
    x, w = torch.randn(500, 700, device="cuda"), torch.randn(300, 700, device="cuda")
    y, _ = forward(x, w, None, NONE, False, precision="tf32")
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        theirs = F.linear(x, w)
    finally:
        torch.backends.cuda.matmul.fp32_precision = before
    assert_as_good_as_torch(y, theirs, F.linear(x.double(), w.double()))
