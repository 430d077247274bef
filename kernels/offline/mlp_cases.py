"""The whole-network kernels' launches, for the compilation report and the tuner."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial
from typing import Any

from torch import Tensor

from fastmlp.kernels.mlp.backward import mlp_backward
from fastmlp.kernels.mlp.forward import Net, mlp_forward
from fastmlp.kernels.offline.case import HEAVY, NUMERICS, Case, Numerics, Run, Shape, normal

_NERF = (32, *[64] * 7, 4)  # eight layers
_RAGGED = (5, 33, 17, 40, 7)  # nothing a multiple of 16


def mlp(
    numerics: Numerics,
    widths: tuple[int, ...],
    rows: int = 1 << 16,
    act: str = "relu",
    out_act: str = "none",
    device: str = "meta",
    *,
    part: str = "training",
    bias: bool = True,
) -> Run:
    """A "forward" (which saves), "inference", "backward" or "recompute" of a net; "training" is both."""
    storage, dtype, precision = numerics
    random = partial(normal, device, std=0.05)
    net = Net(
        [random(storage, n, k) for k, n in itertools.pairwise(widths)],
        [random(storage, n) if bias else None for n in widths[1:]],
        [random(storage, n) if act == "prelu" else None for n in widths[1:-1]],
        act,
        0.01,
        out_act,
        0.01,
        act in HEAVY,
        dtype,
        precision,
    )
    x, grad = random(storage, rows, widths[0]), random(dtype, rows, widths[-1])
    saved = random(dtype, rows, net.offsets[-1])

    def forward() -> tuple[Tensor, Tensor | None]:
        save = part != "inference"
        return mlp_forward(x, net, save=save, keep_z=save and out_act in HEAVY)[:2]

    def backward(saved: Tensor | None) -> Any:
        out = None if out_act == "none" else grad
        found = mlp_backward(grad, x, net, saved, out, need_input=True, need_params=True)
        return found.input, *(grad for layer in found.layers(widths) for grad in layer)

    def training() -> Any:
        y, saved = forward()
        return y, *backward(saved)

    calls: dict[str, Run] = {
        "training": training,
        "backward": lambda: backward(saved),
        "recompute": lambda: backward(None),
    }
    return calls.get(part, lambda: forward()[:1])


def timed(part: str, numerics: Numerics, shape: Shape, device: str = "cuda", *, least: int = 1) -> Run:
    """What the tuner times: ``part`` of eight layers, all as wide as the shape says, or as ``least``."""
    rows, width, _ = shape
    return mlp(numerics, (max(width, least),) * 9, rows, device=device, part=part)


def mlp_cases(device: str) -> Iterator[Case]:
    """Eight layers of width 64 in every dtype, and every branch once."""

    def case(variant: str, dtype: str, widths: tuple[int, ...], rows: int = 1 << 16, **options: Any) -> Case:
        return Case("mlp", variant, dtype, mlp(NUMERICS[dtype], widths, rows, device=device, **options))

    for dtype in NUMERICS:
        yield case("64 x 8 relu", dtype, _NERF)
    yield case("64 x 8 relu inference", "bf16", _NERF, part="inference")
    yield case("64 x 8 prelu recompute", "bf16", _NERF, act="prelu", out_act="tanh", part="recompute")
    for width in (128, 256):
        wide = (32, *[width] * 7, 4)
        yield case(f"{width} x 8 gelu", "bf16", wide, act="gelu", out_act="gelu")
        yield case(f"{width} x 8 recompute", "bf16", wide, part="recompute")
    yield case("128 x 8 relu", "tf32", (32, *[128] * 7, 4))
    yield case("ragged silu no-bias", "bf16", _RAGGED, act="silu", out_act="sigmoid", bias=False)
    yield case("ragged tanh", "fp32", _RAGGED, act="tanh")
    yield case("784-64-300", "autocast", (784, 64, 300), 256)
    yield case("single", "bf16", (1, 1, 1), act="prelu")
