"""The launches that the compilation report compiles and the tuner times.

A case calls a launcher, just as a backend would, on tensors of some shape and device: what is
compiled is what production launches. To add a kernel, write its problem (a function that makes the
tensors and returns a call of the launcher) and yield its cases.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastmlp.kernels.common import quantized as quantization
from fastmlp.kernels.common.arguments import Activation, Scale, Source, activation
from fastmlp.kernels.common.dropout import dropout_mask
from fastmlp.kernels.launch import arch_of, has_dependent_launch, has_tma
from fastmlp.kernels.linear.backward import Asked, Undone, linear_backward, undone
from fastmlp.kernels.linear.forward import linear_act
from fastmlp.kernels.linear.tma import linear_act_tma, linear_backward_tma
from fastmlp.kernels.offline import mlp_cases, training_cases
from fastmlp.kernels.offline.case import (
    HEAVY,
    LIGHT,
    LONG,
    NARROW,
    NUMERICS,
    PRECISIONS,
    RAGGED,
    SINGLE,
    WIDE,
    Case,
    Numerics,
    Run,
    Shape,
    normal,
)
from fastmlp.kernels.offline.loss_cases import cross_entropy_cases, head, head_cases, squared_error_cases
from fastmlp.kernels.training.epoch import runs_on

_DROPOUTS = [("bf16", "narrow", NARROW), *((dtype, "wide", WIDE) for dtype in PRECISIONS)]


def cases(device: str = "meta") -> Iterator[Case]:
    """Every kernel in every precision, and every branch of it at least once; each made as it is asked for."""
    for family in (
        _linear_cases,
        _linear_backward_cases,
        _tma_cases,
        head_cases,
        cross_entropy_cases,
        squared_error_cases,
        _training_cases,
        mlp_cases.mlp_cases,
    ):
        yield from family(device)
    for features in (1000, 1024):
        run = partial(dropout_mask, _dropout(device, 1), 4096, features)
        yield Case("dropout", f"mask {features}", "fp32", run, wide=features % 16 == 0)


def linear(
    numerics: Numerics,
    shape: Shape,
    act: str = "relu",
    device: str = "meta",
    *,
    keep_z: bool = False,
    bias: bool = True,
    transposed: bool = False,
    dropout: bool = False,
    quantized: str = "",
    by_tma: bool = False,
) -> Run:
    """The forward of one layer."""
    m, n, k = shape
    storage, dtype, precision = numerics
    weight = normal(device, storage, n, k)
    b = normal(device, storage, n) if bias else None
    f = _activation(act, n, storage, device)
    if by_tma:
        plain = _matrix(device, storage, m, k, transposed)
        return lambda: linear_act_tma(plain, weight, b, f, keep_z, dtype, precision)
    x = _source(m, k, storage, device, transposed, quantized)
    drop = _dropout(device, 1) if dropout else None
    return lambda: linear_act(x, weight, b, f, keep_z, dtype, precision, dropout=drop)


def _linear_cases(device: str) -> Iterator[Case]:
    def case(variant: str, dtype: str, shape: Shape, act: str = "relu", **options: Any) -> Case:
        return Case("linear", variant, dtype, linear(NUMERICS[dtype], shape, act, device, **options))

    for dtype in NUMERICS:
        yield case("narrow relu", dtype, NARROW)
        yield case("wide relu", dtype, WIDE)
    for act in LIGHT[1:]:
        yield case(f"narrow {act}", "bf16", NARROW, act)
    for act in HEAVY:
        yield case(f"wide {act} keep_z", "bf16", WIDE, act, keep_z=True)
    yield case("narrow none no-bias", "bf16", NARROW, "none", bias=False)
    for dtype in PRECISIONS:
        yield case("ragged none", dtype, RAGGED, "none")
    yield case("single", "bf16", SINGLE)
    for dtype, size, shape in _DROPOUTS:
        yield case(f"{size} relu dropout", dtype, shape, dropout=True)
    for dtype in PRECISIONS:
        yield case("wide affine", dtype, WIDE, quantized="affine")
    yield case("narrow affine", "autocast", NARROW, quantized="affine")
    yield case("narrow scale", "autocast", NARROW, quantized="scale")
    yield case("narrow relu transposed", "bf16", NARROW, transposed=True)
    yield case("wide relu transposed", "bf16", WIDE, transposed=True)


def backward(
    numerics: Numerics,
    shape: Shape,
    act: str = "none",
    previous_act: str = "relu",
    device: str = "meta",
    *,
    bias: bool = True,
    scale: str = "",
    needs: str = "all",
    transposed: bool = False,
    dropouts: tuple[bool, bool] = (False, False),
    quantized: str = "",
    by_tma: bool = False,
) -> Run:
    """The backward of one layer; ``act`` is undone as dY is read, ``previous_act`` in dX's epilogue.

    ``scale`` and ``needs``: of or for the "params", the "input" alone, or "all"; ``dropouts`` are those after
    and before the layer.
    """
    m, n, k = shape
    storage, dtype, precision = numerics
    grad = _matrix(device, dtype, m, n, transposed)
    weight = normal(device, storage, n, k)

    def undo(act: str, features: int, drop: bool, site: int) -> Undone:
        saved = None if act == "none" else normal(device, dtype, m, features)
        dropout = _dropout(device, site) if drop else None
        return undone(_activation(act, features, storage, device), saved, dropout)

    one = torch.ones((), device=device, dtype=torch.float32)
    options: dict[str, Any] = {
        "before": undo(previous_act, k, dropouts[1], 0),
        "scale": Scale(one, one.clone()) if scale else None,
        "scale_input": scale == "all",
        "asked": Asked(needs != "params", needs != "input", storage if bias else None),
        "dtype": dtype,
        "precision": precision,
    }
    # A first layer reads the caller's tensor, which autocast leaves in float32; others what we stored.
    kind = storage if previous_act == "none" else dtype
    if by_tma:
        plain = normal(device, kind, m, k)
        return lambda: linear_backward_tma(grad, plain, weight, **options)
    x, after = _source(m, k, kind, device, False, quantized), undo(act, n, dropouts[0], 1)
    return lambda: linear_backward(grad, x, weight, after=after, **options)


def _linear_backward_cases(device: str) -> Iterator[Case]:
    def case(
        variant: str, dtype: str, shape: Shape, act: str = "none", before: str = "relu", **options: Any
    ) -> Case:
        run = backward(NUMERICS[dtype], shape, act, before, device, **options)
        return Case("linear_backward", variant, dtype, run, wide=shape[1:] != (1, 1))

    for dtype in NUMERICS:
        yield case("narrow epilogue=relu", dtype, NARROW)
        yield case("wide epilogue=relu", dtype, WIDE)
        yield case("narrow first-layer", dtype, NARROW, "none", "none", needs="params")
    for act in LIGHT:
        yield case(f"narrow prologue={act} epilogue={act}", "bf16", NARROW, act, act)
    for act in HEAVY:
        before = "none" if act == "prelu" else act  # a PReLU is never undone in the epilogue
        for size, shape in (("narrow", NARROW), ("wide", WIDE)):
            yield case(f"{size} prologue={act} epilogue={before}", "bf16", shape, act, before)
    yield case("narrow prologue=gelu", "fp32", NARROW, "gelu", "none", needs="params")
    yield case("narrow epilogue=none no-bias", "bf16", NARROW, "none", "none", bias=False)
    yield case("wide first-layer", "bf16", WIDE, "none", "none", needs="params")
    yield case("wide input-only", "bf16", WIDE, needs="input")
    yield case("narrow scale", "bf16", NARROW, scale="params")
    yield case("narrow scale input", "bf16", NARROW, "none", "none", scale="all")
    for dtype in PRECISIONS:
        yield case("ragged epilogue=relu", dtype, RAGGED)
    yield case("narrow transposed", "bf16", NARROW, transposed=True)
    yield case("long", "fp32", LONG)
    yield case("long", "bf16", LONG)
    yield case("single", "bf16", SINGLE, "prelu", "none", scale="params")
    yield case("single epilogue=tanh", "bf16", (1, 1, 1), "none", "tanh", scale="params")
    yield case("long no-bias", "bf16", LONG, bias=False)
    yield case("long scale prelu", "bf16", LONG, "prelu", "none", scale="params")
    for dtype in PRECISIONS:
        yield case("wide affine", dtype, WIDE, "none", "none", needs="params", quantized="affine")
    for quantized in ("affine", "scale"):
        kind = {"needs": "params", "quantized": quantized}
        yield case(f"narrow {quantized}", "autocast", NARROW, "none", "none", **kind)
    yield case("wide affine prologue=gelu", "bf16", WIDE, "gelu", "none", needs="params", quantized="affine")
    for dtype, size, shape in _DROPOUTS:
        yield case(f"{size} dropout epilogue=gelu", dtype, shape, "none", "gelu", dropouts=(False, True))
    for act, before in (("none", "relu"), ("gelu", "tanh"), ("prelu", "none")):
        name = f"wide dropout prologue={act} epilogue={before}"
        yield case(name, "bf16", WIDE, act, before, dropouts=(True, True))


def backward_tma(
    numerics: Numerics,
    shape: Shape,
    previous_act: str = "relu",
    device: str = "meta",
    **options: Any,
) -> Run:
    """The same by TMA: two launches, and no ``act`` to undo as dY is read."""
    return backward(numerics, shape, "none", previous_act, device, by_tma=True, **options)


def _tma_cases(device: str) -> Iterator[Case]:
    def forward(variant: str, dtype: str, shape: Shape, act: str, **options: Any) -> Case:
        run = linear(NUMERICS[dtype], shape, act, device, by_tma=True, **options)
        return Case("matmul", variant, dtype, run)

    def gradients(variant: str, dtype: str, shape: Shape, act: str, **options: Any) -> Case:
        run = backward_tma(NUMERICS[dtype], shape, act, device, **options)
        return Case("matmul_backward", variant, dtype, run)

    if not has_tma(arch_of(torch.empty(0, device=device, dtype=torch.float32))):
        return
    for size, shape in (("narrow", NARROW), ("wide", WIDE)):
        for dtype in ("bf16", "tf32"):
            yield forward(f"{size} gelu keep_z", dtype, shape, "gelu", keep_z=True)
            yield gradients(f"{size} gelu", dtype, shape, "gelu")
    for act in (*LIGHT, *HEAVY):
        if act != "gelu":  # which is above
            yield forward(f"wide {act}", "bf16", WIDE, act, keep_z=act in HEAVY)
        if act not in ("gelu", "prelu"):  # of which the latter is never undone in the epilogue
            yield gradients(f"wide {act} input-only", "bf16", WIDE, act, needs="input")
    yield forward("wide none no-bias", "fp16", WIDE, "none", bias=False)
    yield gradients("wide scale no-bias", "fp16", WIDE, "none", scale="all", bias=False)


#: By the table's families: a layer's problem, and how many matrix products it is.
MATRIX_PROBLEMS: dict[str, tuple[Callable[..., Run], int]] = {
    "linear": (linear, 1),
    "linear_extra": (partial(linear, quantized="affine"), 1),
    "linear_backward": (backward, 2),
    "linear_backward_prologue": (partial(backward, act="relu"), 2),
    "linear_backward_extra": (partial(backward, previous_act="gelu", dropouts=(False, True)), 2),
    "matmul": (partial(linear, by_tma=True), 1),
    "matmul_backward": (backward_tma, 2),
    "head": (head, 2),
    "update": (partial(training_cases.timed, "update"), 1),
    "epoch": (partial(training_cases.timed, "epoch"), 3),  # a step's products
    "mlp": (partial(mlp_cases.timed, "forward"), 8),
    "mlp_backward": (partial(mlp_cases.timed, "recompute"), 24),
    "mlp_wide": (partial(mlp_cases.timed, "forward", least=129), 8),
    "mlp_wide_backward": (partial(mlp_cases.timed, "recompute", least=129), 24),
    "mlp_gradients": (partial(mlp_cases.timed, "backward"), 16),
}


def _matrix(device: str, dtype: torch.dtype, rows: int, cols: int, transposed: bool) -> Tensor:
    return normal(device, dtype, cols, rows).t() if transposed else normal(device, dtype, rows, cols)


def _dropout(device: str, site: int) -> tuple[float, Tensor, int]:
    return 0.5, torch.zeros(1, dtype=torch.int64, device=device), site


def _activation(act: str, features: int, dtype: torch.dtype, device: str) -> Activation:
    return activation(act, 0.01, normal(device, dtype, features) if act == "prelu" else None)


def _source(m: int, k: int, dtype: torch.dtype, device: str, transposed: bool, quantized: str) -> Source:
    """A layer's input: a matrix, or rows of a data set by a number, or by scale and shift a feature."""
    if not quantized:
        x = _matrix(device, dtype, m, k, transposed)
        return quantization.source(x, None, 1.0, None)
    values = torch.empty(60000, k, dtype=torch.uint8, device=device).random_(256)
    index = torch.empty(m, dtype=torch.int64, device=device).random_(len(values))
    if quantized == "scale":
        return quantization.source(values, index, 1 / 255, None)
    scale, shift = normal(device, torch.float32, k), normal(device, torch.float32, k)
    return quantization.source(values, index, scale, shift)


def _training_cases(device: str) -> Iterator[Case]:
    for variant, dtype, problem in training_cases.problems(device):
        kind, arch = problem.kind, arch_of(problem.barrier)
        if kind.pdl and not has_dependent_launch(arch):
            continue
        wide = all(features % 4 == 0 for features in kind.widths[:-1])  # of float32 weights
        yield Case("step", variant, dtype, problem.step, wide)
        if runs_on(arch) and kind.copies and not (kind.pdl or kind.affine):
            yield Case("epoch", variant, dtype, problem.epoch)
