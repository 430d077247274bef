"""The losses' launches: the head, cross-entropy and the squared error."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fastmlp.kernels.loss import cross_entropy as ce
from fastmlp.kernels.loss import mse
from fastmlp.kernels.loss.head import MAX_CLASSES, hidden
from fastmlp.kernels.loss.head import head as head_kernels
from fastmlp.kernels.loss.head import targets as read_targets
from fastmlp.kernels.loss.softmax import criterion
from fastmlp.kernels.offline.case import (
    HEAVY,
    LIGHT,
    NUMERICS,
    RAGGED,
    SINGLE,
    Case,
    Numerics,
    Run,
    Shape,
    normal,
)


def head(
    numerics: Numerics,
    shape: Shape,
    previous_act: str = "relu",
    device: str = "meta",
    *,
    loss: str = "cross_entropy",
    bias: bool = True,
    class_weight: bool = False,
    smoothing: float = 0.0,
    keep_logits: bool = False,
    need_grad: bool = True,
    need_input: bool = True,
    target: torch.dtype = torch.int64,
) -> Run:
    """The head on a hidden layer's output; the shape's N is the number of classes or outputs."""
    m, c, k = shape
    storage, dtype, precision = numerics
    h = normal(device, storage if previous_act == "none" else dtype, m, k)
    weight = normal(device, storage, c, k)
    b = normal(device, storage, c) if bias else None
    targets = normal(device, storage, m, c) if loss == "mse" else _classes((m,), c, target, device)
    weights = normal(device, storage, c) if class_weight else None
    before = hidden(previous_act, 0.01, normal(device, dtype, m, k) if previous_act in HEAVY else h)
    against = criterion(loss, "mean", read_targets(targets), weights, label_smoothing=smoothing)
    wanted = keep_logits, need_grad, need_grad and need_input
    kinds: dict[str, Any] = {"dtype": dtype, "loss_dtype": storage, "precision": precision}
    return lambda: head_kernels(h, weight, b, against, before, wanted, **kinds)


def _classes(shape: tuple[int, ...], classes: int, dtype: torch.dtype, device: str) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=device).random_(classes)


def head_cases(device: str) -> Iterator[Case]:
    """The head in every precision, and every branch of it."""

    def case(variant: str, dtype: str, shape: Shape, act: str = "relu", **options: Any) -> Case:
        return Case("head", variant, dtype, head(NUMERICS[dtype], shape, act, device, **options))

    digits, most = (256, 10, 256), (4096, MAX_CLASSES, 4096)
    yield case(f"{MAX_CLASSES} classes narrow", "autocast", (256, MAX_CLASSES, 256))
    for dtype in NUMERICS:
        yield case("10 classes relu", dtype, digits)
        yield case(f"{MAX_CLASSES} classes relu", dtype, most)
        yield case("10 outputs mse relu", dtype, digits, loss="mse")
        yield case(f"{MAX_CLASSES} outputs mse relu", dtype, most, loss="mse")
    yield case("ragged mse gelu", "bf16", RAGGED, "gelu", loss="mse")
    yield case("1 output mse single", "bf16", SINGLE, loss="mse", keep_logits=True)
    for act in LIGHT[1:]:
        yield case(f"10 classes {act}", "bf16", digits, act)
    for act in HEAVY[1:]:  # a PReLU's gradient is not the head's
        yield case(f"{MAX_CLASSES} classes {act}", "bf16", most, act)
    every: dict[str, Any] = {"class_weight": True, "smoothing": 0.1, "keep_logits": True}
    yield case("10 classes weight smoothing logits", "bf16", digits, **every)
    yield case(f"{MAX_CLASSES} classes weight smoothing logits", "bf16", most, **every)
    yield case("10 classes no-bias uint8", "bf16", digits, bias=False, target=torch.uint8)
    yield case("10 classes evaluation", "bf16", digits, "none", need_grad=False, keep_logits=True)
    yield case("10 classes first-layer", "bf16", digits, "none", need_input=False)
    yield case("ragged gelu", "bf16", RAGGED, "gelu")
    yield case("1 class single", "bf16", SINGLE, **every)


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
    logits = normal(device, dtype, *sizes)
    if probabilities:
        target = torch.empty(sizes, dtype=dtype, device=device).fill_(1 / c)
    else:
        target = _classes((n, d), c, index, device)
    weights = normal(device, dtype, c) if weight else None
    upstream = torch.ones((n, d) if reduction == "none" else (), dtype=dtype, device=device)
    options: dict[str, Any] = {"reduction": reduction, "ignore_index": -100, "label_smoothing": smoothing}

    def run() -> None:
        _, stats = ce.forward(logits, target, weights, z_loss=0.0, **options)
        ce.backward(upstream, logits, target, weights, stats, torch.empty_like(logits), **options)

    return run


def class_tile(dtype: torch.dtype, device: str = "meta", *, probabilities: bool = False) -> Run:
    """The gradient over the logits of a quarter of the classes, as a linear cross-entropy makes it."""
    rows, width, classes = 8192, 32064, 128256
    logits = normal(device, dtype, rows, width, 1)
    if probabilities:
        target = torch.empty(rows, classes, 1, dtype=dtype, device=device).fill_(1 / classes)
    else:
        target = _classes((rows, 1), classes, torch.int64, device)
    stats = torch.ones(3, rows, device=device, dtype=torch.float32)
    upstream = torch.ones((), device=device, dtype=torch.float32).expand(rows, 1)
    options: dict[str, Any] = {"reduction": "none", "ignore_index": -100, "label_smoothing": 0.0}
    return lambda: ce.backward(
        upstream, logits, target, None, stats, logits, first=width, classes=classes, **options
    )


def cross_entropy_cases(device: str) -> Iterator[Case]:
    """The loss of few and of many classes, and every branch of it."""

    def case(variant: str, dtype: str, sizes: tuple[int, int, int], **kwargs: Any) -> Case:
        storage, (_, classes, positions) = NUMERICS[dtype].storage, sizes
        run = cross_entropy(storage, sizes, device, **kwargs)
        row = (classes if positions == 1 else positions) * storage.itemsize
        return Case("cross_entropy", variant, dtype, run, wide=row % 16 == 0)

    digits, words = (256, 10, 1), (4096, 128256, 1)
    for dtype in ("bf16", "fp16", "fp32"):
        yield case("10 classes", dtype, digits)
        yield case("128256 classes", dtype, words)
        yield case("1000 classes", dtype, (4096, 1000, 1))
    yield case("50257 classes", "bf16", (4096, 50257, 1))
    every = {"weight": True, "smoothing": 0.1}
    for size, sizes in (("10", digits), ("128256", words)):
        yield case(f"{size} classes weight smoothing", "bf16", sizes, **every)
        yield case(f"{size} classes weight none", "bf16", sizes, weight=True, reduction="none")
        yield case(f"{size} classes probabilities", "bf16", sizes, probabilities=True, **every)
        yield case(f"1 class {size}", "bf16", (sizes[0], 1, 1), reduction="sum", **every)
    yield case("10 classes uint8", "bf16", digits, index=torch.uint8)
    yield case("image 19 classes sum", "bf16", (4, 19, 256 * 256), reduction="sum")
    for dtype in ("bf16", "fp32"):
        yield Case("cross_entropy", "tile of classes", dtype, class_tile(NUMERICS[dtype].storage, device))
    run = class_tile(torch.bfloat16, device, probabilities=True)
    yield Case("cross_entropy", "tile of classes probabilities", "bf16", run)


def squared_error(
    dtype: torch.dtype,
    shape: tuple[int, int],
    device: str = "meta",
    *,
    reduction: str = "mean",
    weight: bool = False,
    strided: bool = False,
) -> Run:
    """The loss and its gradient."""
    rows, cols = shape
    step = 2 if strided else 1
    x, t = (normal(device, dtype, rows, step * cols)[:, ::step] for _ in range(2))
    w = normal(device, dtype, *shape) if weight else None
    upstream = torch.ones(shape if reduction == "none" else (), dtype=dtype, device=device)

    def run() -> None:
        _, denominator = mse.forward(x, t, w, reduction=reduction)
        mse.backward(upstream, x, t, w, denominator, reduction=reduction)

    return run


def squared_error_cases(device: str) -> Iterator[Case]:
    """The loss in every dtype, and every branch of it."""

    def case(variant: str, dtype: str, **kwargs: Any) -> Case:
        run = squared_error(NUMERICS[dtype].storage, (4096, 10), device, **kwargs)
        return Case("mse", variant, dtype, run, wide=not kwargs.get("strided"))

    for dtype in ("bf16", "fp16", "fp32"):
        yield case("10 outputs", dtype)
    yield case("10 outputs weight", "bf16", weight=True)
    yield case("10 outputs none", "bf16", reduction="none")
    yield case("10 outputs strided weight none", "bf16", reduction="none", weight=True, strided=True)
    yield case("10 outputs strided sum", "fp32", reduction="sum", strided=True)
