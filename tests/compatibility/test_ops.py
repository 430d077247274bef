"""The torch.library ops: torch's own checks of their schemas, fake kernels and autograd."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from fastmlp import backends, functional

GROUP = "torch.compile and export"
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
#: f' from the output, from Z, with a slope, with learned slopes.
KINDS = [
    ("tanh", torch.float32),
    ("gelu", torch.bfloat16),
    ("leaky_relu", torch.float16),
    ("prelu", torch.float32),
]
#: Of an input in each dtype.
SHAPES = {torch.float32: (2, 3, 4), torch.float16: (4,), torch.bfloat16: (6, 4)}
chain_op = sys.modules["fastmlp.ops.chain"]  # whose name in the package is the function
opcheck = torch.library.opcheck
ops = torch.ops.fastmlp


def leaf(*shape: int, device: str, dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, device=device).to(dtype).requires_grad_()


def layers(
    name: str, dtype: torch.dtype, device: str, biases: bool = True
) -> tuple[list[Tensor], list[bool], list[str], list[float], torch.dtype]:
    """4-16-16-16, as the ops' arguments: widths without padding in a network's flat buffers."""
    params, present = [], []
    for i, (n, k) in enumerate(((16, 4), (16, 16), (16, 16))):
        prelu = name == "prelu" and i < 2
        for shape, there in (((n, k), True), ((n,), biases), ((n,), prelu)):
            present.append(there)
            if there:
                params.append(leaf(*shape, device=device, dtype=dtype))
    slope = 0.1 if name == "leaky_relu" else 0.0
    return params, present, [name, name, "none"], [slope, slope, 0.0], dtype


@pytest.mark.few(2)
@pytest.mark.feature(GROUP, "opcheck of the op: chain", backend="triton")
@pytest.mark.parametrize(("name", "dtype"), KINDS, ids=str)
def test_chain(name: str, dtype: torch.dtype, device: str) -> None:
    described = layers(name, dtype, device, biases=name != "tanh")
    x = leaf(*SHAPES[dtype], device=device, dtype=dtype)
    seed = torch.tensor([7], device=device)
    opcheck(ops.chain, (x, *described, seed, [0.3, 0.0, 0.0], True))
    with torch.no_grad():
        opcheck(ops.chain, (x, *described, None, [0.0] * 3, False))
        *kept, y = ops.chain(x, *described, seed, [0.3, 0.0, 0.0], True)
        grad = torch.randn_like(y)
        needs = [False, *[True] * len(described[0])]
        opcheck(ops.chain_backward, (grad, x, *described, kept, seed, [0.3, 0.0, 0.0], needs))


@pytest.mark.few(2)
@pytest.mark.feature(GROUP, "opcheck of the op: whole_net", backend="triton")
@pytest.mark.parametrize(("name", "dtype"), KINDS, ids=str)
@pytest.mark.parametrize("recompute", [False, True])
def test_whole_net(recompute: bool, name: str, dtype: torch.dtype, device: str) -> None:
    described = layers(name, dtype, device, biases=name != "tanh")
    x = leaf(*SHAPES[dtype], device=device, dtype=dtype)
    opcheck(ops.whole_net, (x, *described, True, recompute))
    with torch.no_grad():
        y, *saved = ops.whole_net(x, *described, True, recompute)
        arguments = (torch.randn_like(y), x, *described, None if recompute else saved[0], None)
        for needs in ((True, True), (False, True)):
            opcheck(ops.whole_net_backward, (*arguments, *needs))


@pytest.mark.feature(GROUP, "opcheck of the op: cross_entropy", backend="triton")
@pytest.mark.parametrize(("reduction", "dtype"), zip(["none", "mean", "sum"], DTYPES), ids=str)
@pytest.mark.parametrize("probabilities", [False, True])
def test_cross_entropy(probabilities: bool, reduction: str, dtype: torch.dtype, device: str) -> None:
    logits = leaf(6, 5, 2, device=device, dtype=dtype)
    target = torch.randint(5, (6, 2), device=device)
    if probabilities:
        target = torch.rand(6, 5, 2, device=device).to(dtype)
    weight = torch.rand(5, device=device).to(dtype)
    options = (-100, reduction, 0.1, 1e-3)
    opcheck(ops.cross_entropy, (logits, target, weight, *options))
    logits = logits.detach()
    loss, stats = ops.cross_entropy(logits, target, None, *options)
    opcheck(
        ops.cross_entropy_backward,
        (torch.randn_like(loss), logits, target, None, stats, *options),
    )


@pytest.mark.feature(GROUP, "opcheck of the op: linear_cross_entropy", backend="triton")
@pytest.mark.parametrize(("reduction", "dtype"), zip(["none", "mean", "sum"], DTYPES), ids=str)
@pytest.mark.parametrize("workspace", [None, 500])
def test_linear_cross_entropy(workspace: int | None, reduction: str, dtype: torch.dtype, device: str) -> None:
    x, w = leaf(6, 4, device=device, dtype=dtype), leaf(9, 2, 4, device=device, dtype=dtype)
    bias, target = leaf(9, 2, device=device, dtype=dtype), torch.randint(9, (6, 2), device=device)
    described: tuple[Any, ...] = (-100, reduction, 0.1, dtype, dtype, workspace)
    opcheck(ops.linear_cross_entropy, (x, w, bias, target, None, *described, [True] * 3))
    x, w, bias = x.detach(), w.detach(), bias.detach()
    opcheck(ops.linear_cross_entropy, (x, w, None, target, None, *described, [False, True, False]))
    if reduction == "none":
        grad = torch.randn(6, 2, device=device)
        arguments = (grad, x, w, bias, target, None, *described)
        opcheck(ops.linear_cross_entropy_backward, (*arguments, [True, True, False]))


def test_a_call_that_differs_in_numbers_alone_decides_nothing(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    decided, decide = [], chain_op._decide
    monkeypatch.setattr(chain_op, "_decide", lambda *args: decided.append(1) or decide(*args))
    described = layers("tanh", torch.float32, device)
    arguments = (*described, None, [0.0] * 3, False)
    with torch.no_grad():
        for rows, calls in ((5, 1), (5, 1), (11, 2), (5, 2)):
            x = torch.randn(rows, 4, device=device)
            (y,) = ops.chain(x, *arguments)
            assert len(decided) == calls
            with backends.use("torch"):
                expected = functional.mlp(x, described[0][::2], described[0][1::2], "tanh")
            torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.feature(GROUP, "ops where no kernel can run")
def test_an_op_that_cannot_run_says_why(refuses: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "_triton_problem", lambda on_gpu: "Triton cannot be imported")
    with refuses(RuntimeError, "Triton cannot be imported"):
        ops.cross_entropy(
            torch.randn(3, 4, 1), torch.zeros(3, 1, dtype=torch.int64), None, -100, "mean", 0.0, 0.0
        )
