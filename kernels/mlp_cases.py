"""The whole-network kernels' launches, for the compilation report and the tuner."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from fastmlp.kernels.mlp import Net, mlp_forward
from fastmlp.kernels.mlp_backward import mlp_backward

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

    def forward() -> Any:
        save = part != "inference"
        return mlp_forward(x, net, save=save, keep_z=save and out_act in _KEEP_Z)[:1]

    def backward() -> Any:
        left = None if part == "recompute" else saved
        out = None if out_act == "none" else grad
        found = mlp_backward(grad, x, net, left, out, need_input=True, need_params=True)
        return found.input, *(grad for layer in found.layers(widths) for grad in layer)

    both = lambda: (*forward(), *backward())  # noqa: E731
    return {"training": both, "backward": backward, "recompute": backward}.get(part, forward)


def timed(
    part: str, numerics: Any, shape: tuple[int, int, int], device: str = "cuda", *, least: int = 1
) -> Callable[[], Any]:
    """What the tuner times: ``part`` of eight layers, all as wide as the shape says, or as ``least``."""
    rows, width, _ = shape
    return mlp(numerics, (max(width, least),) * 9, rows, device=device, part=part)


def problems(numerics: dict[str, Any]) -> Iterator[tuple[str, str, Callable[[], Any]]]:
    """Variant, dtype and problem: eight layers of width 64 in every dtype, and every branch once."""
    for dtype, kind in numerics.items():
        yield "64 x 8 relu", dtype, mlp(kind, _NERF)
    bf16, tf32 = numerics["bf16"], numerics["tf32"]
    yield "64 x 8 relu inference", "bf16", mlp(bf16, _NERF, part="inference")
    yield "64 x 8 prelu recompute", "bf16", mlp(bf16, _NERF, act="prelu", out_act="tanh", part="recompute")
    for width in (128, 256):
        yield f"{width} x 8 gelu", "bf16", mlp(bf16, (32, *[width] * 7, 4), act="gelu", out_act="gelu")
        yield f"{width} x 8 recompute", "bf16", mlp(bf16, (32, *[width] * 7, 4), part="recompute")
    yield "128 x 8 relu", "tf32", mlp(tf32, (32, *[128] * 7, 4))
    yield "ragged silu no-bias", "bf16", mlp(bf16, _RAGGED, act="silu", out_act="sigmoid", bias=False)
    yield "ragged tanh", "fp32", mlp(numerics["fp32"], _RAGGED, act="tanh")
    yield "784-64-300", "autocast", mlp(numerics["autocast"], (784, 64, 300), 256)
    yield "single", "bf16", mlp(bf16, (1, 1, 1), act="prelu")
