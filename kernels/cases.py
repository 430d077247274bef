"""The launches that the compilation report compiles and the tuner times.

A case calls a launcher, just as a backend would, on tensors of some shape and device: what is
compiled is what production launches. To add a kernel, write its problem (a function that makes the
tensors and returns a call of the launcher) and yield its cases.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastmlp.kernels import cross_entropy as ce
from fastmlp.kernels import mlp_cases, training_cases
from fastmlp.kernels.dropout import dropout_mask
from fastmlp.kernels.epoch import runs_on
from fastmlp.kernels.head import MAX_CLASSES
from fastmlp.kernels.head import head as head_kernels
from fastmlp.kernels.launch import arch_of, has_dependent_launch, has_tma
from fastmlp.kernels.linear import linear_act
from fastmlp.kernels.linear_backward import linear_backward
from fastmlp.kernels.linear_tma import linear_act_tma, linear_backward_tma


class Numerics(NamedTuple):
    """What parameters are kept in, what a matrix product computes in, and how it treats float32."""

    storage: torch.dtype
    compute: torch.dtype
    precision: str


NUMERICS = {
    "bf16": Numerics(torch.bfloat16, torch.bfloat16, "ieee"),
    "fp16": Numerics(torch.float16, torch.float16, "ieee"),
    "tf32": Numerics(torch.float32, torch.float32, "tf32"),
    "fp32": Numerics(torch.float32, torch.float32, "ieee"),
    "autocast": Numerics(torch.float32, torch.bfloat16, "ieee"),
}

Run = Callable[[], Any]
Shape = tuple[int, int, int]  # M, N, K: rows, output features, input features

NARROW: Shape = (256, 256, 784)
WIDE: Shape = (4096, 4096, 4096)
RAGGED: Shape = (256, 10, 250)  # a classifier's last layer: nothing a multiple of 16
SINGLE: Shape = (60000, 1, 1)  # Triton makes an argument that is 1 a constant, of which not all works
LONG: Shape = (60000, 64, 256)  # few tiles of dW over a long batch: several programs share each
# By the registers that f' takes. It needs the input of the heavy ones, so their forward keeps it.
_LIGHT = ("relu", "leaky_relu", "sigmoid", "tanh")
_HEAVY = ("prelu", "gelu", "gelu_tanh", "silu")
_DROPOUTS = [("bf16", "narrow", NARROW), *((dtype, "wide", WIDE) for dtype in ("bf16", "tf32", "fp32"))]


@dataclass(frozen=True)
class Case:
    """One call of a launcher, and how to name it in a report."""

    family: str
    variant: str
    dtype: str
    run: Run


def cases() -> Iterator[Case]:
    """Every kernel in every precision, and every branch of it at least once."""
    for family in (
        _linear_cases,
        _linear_backward_cases,
        _tma_cases,
        _head_cases,
        _cross_entropy_cases,
        _training_cases,
        _mlp_cases,
    ):
        yield from family()
    yield Case("dropout", "mask", "fp32", lambda: dropout_mask(_dropout("meta", 1), 4096, 1000))


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
    launcher: Callable[..., Any] = linear_act,
) -> Run:
    """The forward of one layer."""
    m, n, k = shape
    x = _matrix(m, k, numerics.storage, device, transposed)
    weight = _matrix(n, k, numerics.storage, device)
    b = _vector(n, numerics.storage, device) if bias else None
    slope = _vector(n, numerics.storage, device) if act == "prelu" else None
    options: dict[str, Any] = {"dropout": _dropout(device, 1)} if dropout else {}
    if quantized:
        x, options = _quantized(m, k, device, quantized)
    return lambda: launcher(
        x, weight, b, act, 0.01, slope, keep_z, numerics.compute, numerics.precision, **options
    )


def _linear_cases() -> Iterator[Case]:
    for dtype, numerics in NUMERICS.items():
        yield Case("linear", "narrow relu", dtype, linear(numerics, NARROW))
        yield Case("linear", "wide relu", dtype, linear(numerics, WIDE))
    bf16 = NUMERICS["bf16"]
    for act in _LIGHT[1:]:
        yield Case("linear", f"narrow {act}", "bf16", linear(bf16, NARROW, act))
    for act in _HEAVY:
        yield Case("linear", f"wide {act} keep_z", "bf16", linear(bf16, WIDE, act, keep_z=True))
    yield Case("linear", "narrow none no-bias", "bf16", linear(bf16, NARROW, "none", bias=False))
    for dtype in ("bf16", "tf32", "fp32"):
        yield Case("linear", "ragged none", dtype, linear(NUMERICS[dtype], RAGGED, "none"))
    yield Case("linear", "single", "bf16", linear(bf16, SINGLE))
    for dtype, size, shape in _DROPOUTS:
        yield Case("linear", f"{size} relu dropout", dtype, linear(NUMERICS[dtype], shape, dropout=True))
    for dtype in ("bf16", "tf32", "fp32"):
        yield Case("linear", "wide affine", dtype, linear(NUMERICS[dtype], WIDE, quantized="affine"))
    yield Case(
        "linear", "narrow affine", "autocast", linear(NUMERICS["autocast"], NARROW, quantized="affine")
    )
    yield Case("linear", "narrow scale", "autocast", linear(NUMERICS["autocast"], NARROW, quantized="scale"))
    yield Case("linear", "narrow relu transposed", "bf16", linear(bf16, NARROW, transposed=True))
    yield Case("linear", "wide relu transposed", "bf16", linear(bf16, WIDE, transposed=True))


def backward(
    numerics: Numerics,
    shape: Shape,
    act: str = "none",
    previous_act: str = "relu",
    device: str = "meta",
    *,
    bias: bool = True,
    scale: bool = False,
    scale_input: bool = False,
    need_input: bool = True,
    need_params: bool = True,
    transposed: bool = False,
    dropout: bool = False,
    previous_dropout: bool = False,
    quantized: str = "",
    by_tma: bool = False,
) -> Run:
    """The backward of one layer; ``act`` is undone as dY is read, ``previous_act`` in dX's epilogue."""
    m, n, k = shape
    storage, dtype, precision = numerics
    grad = _matrix(m, n, dtype, device, transposed)
    # A first layer reads the caller's tensor, which autocast leaves in float32; others what we stored.
    x = _matrix(m, k, storage if previous_act == "none" else dtype, device)
    weight = _matrix(n, k, storage, device)
    arguments: dict[str, Any] = {
        "act": act,
        "saved": None if act == "none" else _matrix(m, n, dtype, device),
        "slope": 0.01,
        "slope_weight": _vector(n, storage, device) if act == "prelu" else None,
        "previous_act": previous_act,
        "previous_saved": None if previous_act == "none" else _matrix(m, k, dtype, device),
        "previous_slope": 0.01,
        "scale": (_scalar(device), _scalar(device)) if scale else None,
        "scale_input": scale_input,
        "need_input": need_input,
        "need_params": need_params,
        "bias_dtype": storage if bias else None,
        "dtype": dtype,
        "precision": precision,
        "dropout": _dropout(device, 1) if dropout else None,
        "previous_dropout": _dropout(device, 0) if previous_dropout else None,
    }
    if by_tma:
        for name in ("act", "saved", "slope", "slope_weight", "dropout", "previous_dropout"):
            del arguments[name]
        return lambda: linear_backward_tma(grad, x, weight, **arguments)
    if quantized:
        x, options = _quantized(m, k, device, quantized)
        arguments |= options
    return lambda: linear_backward(grad, x, weight, **arguments)


def _linear_backward_cases() -> Iterator[Case]:
    def case(variant: str, dtype: str, shape: Shape, *args: Any, **kwargs: Any) -> Case:
        return Case("linear_backward", variant, dtype, backward(NUMERICS[dtype], shape, *args, **kwargs))

    for dtype in NUMERICS:
        yield case("narrow epilogue=relu", dtype, NARROW)
        yield case("wide epilogue=relu", dtype, WIDE)
        yield case("narrow first-layer", dtype, NARROW, "none", "none", need_input=False)
    for act in _LIGHT:
        yield case(f"narrow prologue={act} epilogue={act}", "bf16", NARROW, act, act)
    for act in _HEAVY:
        before = "none" if act == "prelu" else act  # a PReLU is never undone in the epilogue
        for size, shape in (("narrow", NARROW), ("wide", WIDE)):
            yield case(f"{size} prologue={act} epilogue={before}", "bf16", shape, act, before)
    yield case("narrow epilogue=none no-bias", "bf16", NARROW, "none", "none", bias=False)
    yield case("wide first-layer", "bf16", WIDE, "none", "none", need_input=False)
    yield case("wide input-only", "bf16", WIDE, need_params=False)
    yield case("narrow scale", "bf16", NARROW, scale=True)
    yield case("narrow scale input", "bf16", NARROW, "none", "none", scale=True, scale_input=True)
    for dtype in ("bf16", "tf32", "fp32"):
        yield case("ragged epilogue=relu", dtype, RAGGED)
    yield case("narrow transposed", "bf16", NARROW, transposed=True)
    yield case("long", "fp32", LONG)
    yield case("long", "bf16", LONG)
    yield case("single", "bf16", SINGLE, "prelu", "none", scale=True)
    yield case("single epilogue=tanh", "bf16", (1, 1, 1), "none", "tanh", scale=True)
    yield case("long no-bias", "bf16", LONG, bias=False)
    yield case("long scale prelu", "bf16", LONG, "prelu", "none", scale=True)
    for dtype in ("bf16", "tf32", "fp32"):
        yield case("wide affine", dtype, WIDE, "none", "none", need_input=False, quantized="affine")
    for quantized in ("affine", "scale"):
        kind = {"need_input": False, "quantized": quantized}
        yield case(f"narrow {quantized}", "autocast", NARROW, "none", "none", **kind)
    yield case(
        "wide affine prologue=gelu", "bf16", WIDE, "gelu", "none", need_input=False, quantized="affine"
    )
    for dtype, size, shape in _DROPOUTS:
        yield case(f"{size} dropout epilogue=gelu", dtype, shape, "none", "gelu", previous_dropout=True)
    for act, before in (("none", "relu"), ("gelu", "tanh"), ("prelu", "none")):
        name = f"wide dropout prologue={act} epilogue={before}"
        yield case(name, "bf16", WIDE, act, before, dropout=True, previous_dropout=True)


def backward_tma(
    numerics: Numerics,
    shape: Shape,
    previous_act: str = "relu",
    device: str = "meta",
    **options: Any,
) -> Run:
    """The same by TMA: two launches, and no ``act`` to undo as dY is read."""
    return backward(numerics, shape, "none", previous_act, device, by_tma=True, **options)


def _tma_cases() -> Iterator[Case]:
    if not has_tma(arch_of(_scalar("meta"))):
        return
    for size, shape in (("narrow", NARROW), ("wide", WIDE)):
        for dtype in ("bf16", "tf32"):
            numerics = NUMERICS[dtype]
            keeps = linear(numerics, shape, "gelu", keep_z=True, launcher=linear_act_tma)
            yield Case("matmul", f"{size} gelu keep_z", dtype, keeps)
            yield Case("matmul_backward", f"{size} gelu", dtype, backward_tma(numerics, shape, "gelu"))
    for act in (*_LIGHT, "silu", "gelu_tanh", "prelu"):
        keep_z = act in _HEAVY
        run = linear(NUMERICS["bf16"], WIDE, act, keep_z=keep_z, launcher=linear_act_tma)
        yield Case("matmul", f"wide {act}", "bf16", run)
    for act in (*_LIGHT, "silu", "gelu_tanh"):  # a PReLU is never undone in the epilogue
        run = backward_tma(NUMERICS["bf16"], WIDE, act, need_params=False)
        yield Case("matmul_backward", f"wide {act} input-only", "bf16", run)
    half = NUMERICS["fp16"]
    yield Case(
        "matmul", "wide none no-bias", "fp16", linear(half, WIDE, "none", bias=False, launcher=linear_act_tma)
    )
    scaled = backward_tma(half, WIDE, "none", scale=True, scale_input=True, bias=False)
    yield Case("matmul_backward", "wide scale no-bias", "fp16", scaled)


def head(
    numerics: Numerics,
    shape: Shape,
    previous_act: str = "relu",
    device: str = "meta",
    *,
    bias: bool = True,
    class_weight: bool = False,
    smoothing: float = 0.0,
    keep_logits: bool = False,
    need_grad: bool = True,
    need_input: bool = True,
    target: torch.dtype = torch.int64,
) -> Run:
    """The classifier head on a hidden layer's output; the shape's N is the number of classes."""
    m, c, k = shape
    storage, dtype, precision = numerics
    h = _matrix(m, k, storage if previous_act == "none" else dtype, device)
    weight = _matrix(c, k, storage, device)
    b = _vector(c, storage, device) if bias else None
    classes = torch.zeros(m, dtype=target, device=device)
    weights = _vector(c, storage, device) if class_weight else None
    arguments: dict[str, Any] = {
        "previous_act": previous_act,
        "previous_saved": _matrix(m, k, dtype, device) if previous_act in _HEAVY else h,
        "previous_slope": 0.01,
        "reduction": "mean",
        "ignore_index": -100,
        "label_smoothing": smoothing,
        "z_loss": 0.0,
        "keep_logits": keep_logits,
        "need_grad": need_grad,
        "need_input": need_input,
        "loss_dtype": storage,
        "dtype": dtype,
        "precision": precision,
    }
    return lambda: head_kernels(h, weight, b, classes, weights, **arguments)


def _head_cases() -> Iterator[Case]:
    def case(variant: str, dtype: str, shape: Shape, *args: Any, **kwargs: Any) -> Case:
        return Case("head", variant, dtype, head(NUMERICS[dtype], shape, *args, **kwargs))

    digits, most = (256, 10, 256), (4096, MAX_CLASSES, 4096)
    yield case(f"{MAX_CLASSES} classes narrow", "autocast", (256, MAX_CLASSES, 256))
    for dtype in NUMERICS:
        yield case("10 classes relu", dtype, digits)
        yield case(f"{MAX_CLASSES} classes relu", dtype, most)
    for act in _LIGHT[1:]:
        yield case(f"10 classes {act}", "bf16", digits, act)
    for act in _HEAVY[1:]:  # a PReLU's gradient is not the head's
        yield case(f"{MAX_CLASSES} classes {act}", "bf16", most, act)
    every = {"class_weight": True, "smoothing": 0.1, "keep_logits": True}
    yield case("10 classes weight smoothing logits", "bf16", digits, **every)
    yield case(f"{MAX_CLASSES} classes weight smoothing logits", "bf16", most, **every)
    yield case("10 classes no-bias uint8", "bf16", digits, bias=False, target=torch.uint8)
    yield case("10 classes evaluation", "bf16", digits, "none", need_grad=False, keep_logits=True)
    yield case("10 classes first-layer", "bf16", digits, "none", need_input=False)
    yield case("ragged gelu", "bf16", RAGGED, "gelu")
    yield case("1 class single", "bf16", SINGLE, **every)


#: By the table's families: a layer's problem, and how many matrix products it is.
MATRIX_PROBLEMS: dict[str, tuple[Callable[..., Run], int]] = {
    "linear": (linear, 1),
    "linear_extra": (partial(linear, quantized="affine"), 1),
    "linear_backward": (backward, 2),
    "linear_backward_prologue": (partial(backward, act="relu"), 2),
    "linear_backward_extra": (partial(backward, previous_act="gelu", previous_dropout=True), 2),
    "matmul": (partial(linear, launcher=linear_act_tma), 1),
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


def cross_entropy(
    dtype: torch.dtype,
    sizes: tuple[int, int, int],  # N, C, D of the logits
    device: str = "meta",
    *,
    probabilities: bool = False,
    weight: bool = False,
    smoothing: float = 0.0,
    reduction: str = "mean",
    index: torch.dtype = torch.int64,
) -> Run:
    """The loss and its gradient."""
    n, c, d = sizes
    logits = torch.empty(sizes, dtype=dtype, device=device).normal_()
    if probabilities:
        target = torch.empty(sizes, dtype=dtype, device=device).fill_(1 / c)
    else:
        target = torch.zeros(n, d, dtype=index, device=device)
    weights = _vector(c, dtype, device) if weight else None
    upstream = torch.ones((n, d) if reduction == "none" else (), dtype=dtype, device=device)
    options: dict[str, Any] = {
        "reduction": reduction,
        "ignore_index": -100,
        "label_smoothing": smoothing,
    }

    def run() -> None:
        _, stats, denominator = ce.forward(logits, target, weights, z_loss=0.0, **options)
        ce.backward(
            upstream, logits, target, weights, stats, denominator, torch.empty_like(logits), **options
        )

    return run


def class_tile(dtype: torch.dtype, device: str = "meta", *, probabilities: bool = False) -> Run:
    """The gradient over the logits of a quarter of the classes, as a linear cross-entropy makes it."""
    rows, width, classes = 8192, 32064, 128256
    logits = torch.empty(rows, width, 1, dtype=dtype, device=device).normal_()
    if probabilities:
        target = torch.empty(rows, classes, 1, dtype=dtype, device=device).fill_(1 / classes)
    else:
        target = torch.zeros(rows, 1, dtype=torch.int64, device=device)
    stats = torch.ones(3, rows, device=device)
    upstream = torch.ones((), device=device).expand(rows, 1)
    options: dict[str, Any] = {"reduction": "none", "ignore_index": -100, "label_smoothing": 0.0}
    return lambda: ce.backward(
        upstream, logits, target, None, stats, None, logits, first=width, classes=classes, **options
    )


def _cross_entropy_cases() -> Iterator[Case]:
    def case(variant: str, dtype: str, sizes: tuple[int, int, int], **kwargs: Any) -> Case:
        return Case("cross_entropy", variant, dtype, cross_entropy(NUMERICS[dtype].storage, sizes, **kwargs))

    digits, words = (256, 10, 1), (4096, 128256, 1)
    for dtype in ("bf16", "fp16", "fp32"):
        yield case("10 classes", dtype, digits)
        yield case("128256 classes", dtype, words)
    yield case("1000 classes", "fp32", (4096, 1000, 1))
    every = {"weight": True, "smoothing": 0.1}
    for size, sizes in (("10", digits), ("128256", words)):
        yield case(f"{size} classes weight smoothing", "bf16", sizes, **every)
        yield case(f"{size} classes weight none", "bf16", sizes, weight=True, reduction="none")
        yield case(f"{size} classes probabilities", "bf16", sizes, probabilities=True, **every)
        yield case(f"1 class {size}", "bf16", (sizes[0], 1, 1), reduction="sum", **every)
    yield case("10 classes uint8", "bf16", digits, index=torch.uint8)
    yield case("image 19 classes sum", "bf16", (4, 19, 256 * 256), reduction="sum")
    for dtype in ("bf16", "fp32"):
        yield Case("cross_entropy", "tile of classes", dtype, class_tile(NUMERICS[dtype].storage))
    run = class_tile(torch.bfloat16, probabilities=True)
    yield Case("cross_entropy", "tile of classes probabilities", "bf16", run)


def _matrix(rows: int, cols: int, dtype: torch.dtype, device: str, transposed: bool = False) -> Tensor:
    if transposed:
        return _matrix(cols, rows, dtype, device).t()
    return torch.empty(rows, cols, dtype=dtype, device=device).normal_()


def _vector(size: int, dtype: torch.dtype, device: str) -> Tensor:
    return torch.empty(size, dtype=dtype, device=device).normal_()


def _dropout(device: str, site: int) -> tuple[float, Tensor, int]:
    return 0.5, torch.zeros(1, dtype=torch.int64, device=device), site


def _quantized(m: int, k: int, device: str, kind: str) -> tuple[Tensor, dict[str, Any]]:
    """A data set, and how a batch of ``m`` is had from it: by a number, or scale and shift a feature."""
    values = torch.zeros(60000, k, dtype=torch.uint8, device=device)
    options: dict[str, Any] = {"index": torch.zeros(m, dtype=torch.int64, device=device), "x_scale": 1 / 255}
    if kind == "affine":
        options |= {
            "x_scale": _vector(k, torch.float32, device),
            "x_shift": _vector(k, torch.float32, device),
        }
    return values, options


def _scalar(device: str) -> Tensor:
    return torch.ones((), device=device)


def _training_cases() -> Iterator[Case]:
    for variant, dtype, problem in training_cases.problems():
        arch = arch_of(problem.x)
        if problem.task.pdl and not has_dependent_launch(arch):
            continue
        yield Case("step", variant, dtype, problem.step)
        if runs_on(arch) and not problem.task.pdl and problem.copies and problem.dequantize is None:
            yield Case("epoch", variant, dtype, problem.epoch)


def _mlp_cases() -> Iterator[Case]:
    for variant, dtype, run in mlp_cases.problems(NUMERICS):
        yield Case("mlp", variant, dtype, run)
