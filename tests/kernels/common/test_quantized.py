"""Quantized inputs in the layer's kernels against float64, forward and backward."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from fastmlp.activations import NONE
from fastmlp.backends.base import BackwardOptions, Quantized, Undo
from fastmlp.backends.torch_backend import TorchBackend
from fastmlp.backends.triton_backend import TritonBackend
from fastmlp.kernels.common.arguments import Vector
from fastmlp.kernels.common.quantized import source
from fastmlp.kernels.launch import record_launches
from fastmlp.kernels.linear import backward as linear_backward
from tests.numerics import assert_as_good_as_torch
from tests.problems import DTYPES, SIZES, activation, matrix, vector

INTEGERS = (torch.uint8, torch.int8)


def integers(rng: random.Random, rows: int, cols: int, device: str) -> Tensor:
    """All values of either dtype, contiguous, transposed or with steps."""
    kind = rng.choice(INTEGERS)
    low, high = (0, 256) if kind == torch.uint8 else (-128, 128)
    layout = rng.choice(["contiguous", "transposed", "sliced"])
    shape = {"contiguous": (rows, cols), "transposed": (cols, rows), "sliced": (2 * rows, 3 * cols)}[layout]
    q = torch.randint(low, high, shape, dtype=kind, device=device)
    return {"contiguous": q, "transposed": q.t(), "sliced": q[::2, ::3]}[layout]


def number(rng: random.Random, features: int, kind: str, device: str) -> float | Tensor:
    """About 0.02: a number, one on the device, or one a feature, of any layout."""
    if kind == "number":
        return rng.choice([1 / 255, 0.03, -0.01])
    many = torch.rand(2 * features, device=device)[::2] * 0.02 + 0.01
    return many if kind == "many" else many[0] if rng.random() < 0.5 else many[:1]


def quantized(rng: random.Random, m: int, k: int, device: str) -> Quantized:
    gather = rng.random() < 0.6
    rows = rng.choice([1, 50, 200]) if gather else m
    values = integers(rng, rows, k, device)
    scale = number(rng, k, rng.choice(["number", "one", "many"]), device)
    shift = number(rng, k, rng.choice(["number", "one", "many"]), device) if rng.random() < 0.6 else None
    if shift is not None:
        shift = -50 * shift
    index = torch.randint(rows, (m,), device=device) if gather else None
    return Quantized(values, scale, shift, index.int() if index is not None and rng.random() < 0.3 else index)


@pytest.mark.few(8)
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("seed", range(24))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_random_problem(dtype: torch.dtype, seed: int, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Layouts, dtypes, kinds of numbers, repeats in the index, splits of the batch; torch gets dense rows."""
    rng = random.Random(f"{dtype}{seed}")
    m, n, k = (rng.choice(SIZES) for _ in range(3))
    if seed % 4 == 0:
        m += 100
        monkeypatch.setattr(linear_backward, "_ROWS_PER_SPLIT", 16)
    q = quantized(rng, m, k, device)
    w, bias = matrix(rng, n, k, dtype, device), vector(rng, n, dtype, device) if rng.random() < 0.7 else None
    act = activation(rng, rng.choice(["none", "relu", "gelu", "prelu"]), n, dtype, device)
    runs = []
    wide = act._replace(weight=None if act.weight is None else act.weight.double())
    for backend, x, kind in (
        (TritonBackend(), q, dtype),
        (TorchBackend(), q.dense(dtype), dtype),
        (TorchBackend(), q.dense(torch.float64), torch.float64),
    ):
        one = wide if kind == torch.float64 else act
        b = None if bias is None else bias.to(kind)
        y, _ = backend.linear_act(x, w.to(kind), b, one, True, kind)
        torch.manual_seed(seed)
        grad, saved = torch.randn(m, n, device=device).to(dtype), torch.randn(m, n, device=device).to(dtype)
        options = BackwardOptions(
            kind,
            after=Undo(one, None if act.name == "none" else saved.to(kind)),
            need_input=False,
            bias_dtype=None if b is None else kind,
        )
        grads = backend.linear_backward(grad.to(kind), x, w.to(kind), options)
        runs.append([y, grads.weight, grads.bias])
    for what, ours, theirs, exact in zip(("y", "dw", "db"), *runs):
        if exact is not None:
            assert_as_good_as_torch(ours, theirs, exact, f"{what} {(m, n, k)} {q.scale} {q.shift}")


@pytest.mark.parametrize("kind", INTEGERS, ids=str)
def test_one_scale_is_exact_in_16_bits(kind: torch.dtype, device: str) -> None:
    """The integers are multiplied as they are; x / 255 in bf16 would be off by 2⁻⁹."""
    q = Quantized(torch.arange(256, device=device).to(kind).view(1, 256), 1 / 255)
    y, _ = TritonBackend().linear_act(q, torch.eye(256, device=device), None, NONE, False, torch.bfloat16)
    expected = (q.values.double() / 255).bfloat16()
    assert torch.equal(y, expected)


def test_how_it_is_dequantized(device: str) -> None:
    one, many = torch.ones(1, device=device), torch.ones(3, device=device)
    for scale in (1.0, 1):
        assert source(many[None], None, scale).scale is None
    for scale in (0.5, one, one[0]):  # in the epilogue of an exact product
        found = source(many[None], None, scale)
        assert found.scale.ptr is scale
        assert (found.scale.stride, found.shift) == (0, None)
    # As its tile is loaded.
    assert source(many[None], None, many)[2:4] == (Vector(many, 1), Vector(0.0, 0))
    assert source(many[None], None, 1.0, 0.0)[2:4] == (Vector(1.0, 0), Vector(0.0, 0))


def test_one_launch_each_way(device: str) -> None:
    q = Quantized(
        torch.zeros(99, 20, dtype=torch.int8, device=device),
        torch.ones(20, device=device),
        0.5,
        torch.arange(30, device=device),
    )
    w = torch.randn(10, 20, device=device)
    with record_launches() as launches:
        TritonBackend().linear_act(q, w, None, NONE, False, torch.float32)
        options = BackwardOptions(torch.float32, need_input=False)
        TritonBackend().linear_backward(torch.randn(30, 10, device=device), q, w, options)
    assert [one.name for one in launches] == ["linear_act_kernel", "linear_backward_kernel"]
