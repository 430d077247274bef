"""What the two backends do with a tile of logits is the same, and products fill the memory they are given."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastmlp.backends import logit_tiles
from fastmlp.backends.base import Backend, Criterion, LossOptions
from fastmlp.backends.torch_backend import TorchBackend
from fastmlp.backends.triton_backend import TritonBackend


@pytest.mark.parametrize("d", [1, 3])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rows_then_classes(dtype: torch.dtype, soft: bool, smoothing: float, d: int, device: str) -> None:
    """Losses of whole rows, their gradient, and the same gradient again from some classes at a time."""
    n, c = 11, 70
    logits = (3 * torch.randn(n, c, d, device=device)).to(dtype)
    weight = torch.rand(c, device=device).to(dtype)
    target = torch.rand(n, c, d, device=device).to(dtype) if soft else torch.randint(c, (n, d), device=device)
    if not soft:
        target[::4] = 5
    criterion = Criterion(target, weight, LossOptions(-100 if soft else 5, "mean", smoothing))
    upstream = torch.tensor(0.3, device=device)

    def run(backend: Backend) -> tuple[Tensor, ...]:
        whole, parts = logits.clone(), []
        loss, stats = backend.loss_of_rows(whole, criterion, upstream)
        each = upstream.expand(n, d)
        for first in range(0, c, 32):
            part = logits[:, first : first + 32].clone()
            backend.loss_gradient(part, first, c, criterion, stats, each)
            parts.append(part)
        return loss, whole, torch.cat(parts, 1)

    a, b = run(TorchBackend()), run(TritonBackend())
    for got, expected in zip(a, b):
        assert got.dtype == expected.dtype
        torch.testing.assert_close(got, expected)
    torch.testing.assert_close(a[1], a[2])
    assert a[0].dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("bias", [False, True])
def test_products(dtype: torch.dtype, bias: bool, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Into strided memory, of every dtype, and into memory of another."""
    monkeypatch.setattr(logit_tiles, "_CAST", 7)
    x, w = torch.randn(9, 5, device=device).to(dtype), torch.randn(5, 23, device=device).to(dtype).t()
    b = torch.randn(23, device=device).to(dtype) if bias else None
    tile = torch.full((9, 23), float("nan"), dtype=dtype, device=device)
    logit_tiles.linear(x, w, b, tile)
    torch.testing.assert_close(tile, torch.nn.functional.linear(x, w, b))

    dx, dw = torch.full_like(x, float("nan")), torch.full((23, 5), float("nan"), dtype=dtype, device=device)
    logit_tiles.input_gradient(tile, w, dx)
    torch.testing.assert_close(dx, tile @ w)
    logit_tiles.weight_gradient(tile, x, dw, accumulate=False)
    torch.testing.assert_close(dw, tile.t() @ x)
    if dtype != torch.bfloat16:  # of which a sum is never accumulated
        logit_tiles.weight_gradient(tile, x, dw, accumulate=True)
        torch.testing.assert_close(dw, 2 * (tile.t() @ x))
        return
    wide = [torch.full(t.shape, float("nan"), device=device) for t in (dx, dw)]
    logit_tiles.input_gradient(tile, w, wide[0])
    logit_tiles.weight_gradient(tile, x, wide[1], accumulate=False)
    for a, expected in zip(wide, (tile @ w, tile.t() @ x)):
        torch.testing.assert_close(a, expected.float())
