"""The whole-network kernels' launches, for the compilation report and the tuner."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from fastmlp.kernels.mlp.backward import mlp_backward
from fastmlp.kernels.mlp.forward import Net, mlp_forward

_KEEP_Z = ("prelu", "gelu", "gelu_tanh", "silu")
_NERF = (32, *[64] * 7, 4)  # eight layers
_RAGGED = (5, 33, 17, 40, 7)  # nothing a multiple of 16


def mlp(
    numerics: Any,
    widths: tuple[int, ...],
    rows: int = 1 << 16,
    act: str = "relu",
    out_act: str = "none",
    device: str = "meta",
    *,
    part: str = "training",
    bias: bool = True,
) -> Callable[[], Any]:
    """A "forward" (which saves), "inference", "backward" or "recompute" of a net; "training" is both."""
    storage, dtype, precision = numerics

    def random(*shape: int, dtype: torch.dtype = storage) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=device).normal_(std=0.05)

    net = Net(
        [random(n, k) for k, n in itertools.pairwise(widths)],
        [random(n) if bias else None for n in widths[1:]],
        [random(n) if act == "prelu" else None for n in widths[1:-1]],
        act,
        0.01,
        out_act,
        0.01,
        act in _KEEP_Z,
        dtype,
        precision,
    )
    x, grad = random(rows, widths[0]), random(rows, widths[-1], dtype=dtype)
    saved = random(rows, net.offsets[-1], dtype=dtype)

    def forward() -> tuple[Tensor, Tensor | None]:
        save = part != "inference"
        return mlp_forward(x, net, save=save, keep_z=save and out_act in _KEEP_Z)[:2]

    def backward(saved: Tensor | None) -> Any:
        out = None if out_act == "none" else grad
        found = mlp_backward(grad, x, net, saved, out, need_input=True, need_params=True)
        return found.input, *(grad for layer in found.layers(widths) for grad in layer)

    def training() -> Any:
        y, saved = forward()
        return y, *backward(saved)

    calls: dict[str, Callable[[], Any]] = {
        "training": training,
        "backward": lambda: backward(saved),
        "recompute": lambda: backward(None),
    }
    return calls.get(part, lambda: forward()[:1])


def timed(
    part: str, numerics: Any, shape: tuple[int, int, int], device: str = "cuda", *, least: int = 1
) -> Callable[[], Any]:
    """What the tuner times: ``part`` of eight layers, all as wide as the shape says, or as ``least``."""
    rows, width, _ = shape
    return mlp(numerics, (max(width, least),) * 9, rows, device=device, part=part)


def problems(numerics: dict[str, Any], device: str = "meta") -> Iterator[tuple[str, str, Callable[[], Any]]]:
    """Variant, dtype and problem: eight layers of width 64 in every dtype, and every branch once."""

    def of(
        variant: str, dtype: str, widths: tuple[int, ...], rows: int = 1 << 16, **options: Any
    ) -> tuple[str, str, Callable[[], Any]]:
        return variant, dtype, mlp(numerics[dtype], widths, rows, device=device, **options)

    for dtype in numerics:
        yield of("64 x 8 relu", dtype, _NERF)
    yield of("64 x 8 relu inference", "bf16", _NERF, part="inference")
    yield of("64 x 8 prelu recompute", "bf16", _NERF, act="prelu", out_act="tanh", part="recompute")
    for width in (128, 256):
        wide = (32, *[width] * 7, 4)
        yield of(f"{width} x 8 gelu", "bf16", wide, act="gelu", out_act="gelu")
        yield of(f"{width} x 8 recompute", "bf16", wide, part="recompute")
    yield of("128 x 8 relu", "tf32", (32, *[128] * 7, 4))
    yield of("ragged silu no-bias", "bf16", _RAGGED, act="silu", out_act="sigmoid", bias=False)
    yield of("ragged tanh", "fp32", _RAGGED, act="tanh")
    yield of("784-64-300", "autocast", (784, 64, 300), 256)
    yield of("single", "bf16", (1, 1, 1), act="prelu")
