"""The products, into strided memory, of every dtype, and into memory of another."""

from __future__ import annotations

import pytest
import torch

from fastmlp.backends import products


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("bias", [False, True])
def test_products(dtype: torch.dtype, bias: bool, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_CAST", 7)
    x, w = torch.randn(9, 5, device=device).to(dtype), torch.randn(5, 23, device=device).to(dtype).t()
    b = torch.randn(23, device=device).to(dtype) if bias else None
    tile = torch.full((9, 23), float("nan"), dtype=dtype, device=device)
    products.logits(x, w, b, tile)
    torch.testing.assert_close(tile, torch.nn.functional.linear(x, w, b))

    dx, dw = torch.full_like(x, float("nan")), torch.full((23, 5), float("nan"), dtype=dtype, device=device)
    products.input_gradient(tile, w, dx)
    torch.testing.assert_close(dx, tile @ w)
    products.weight_gradient(tile, x, dw, accumulate=False)
    torch.testing.assert_close(dw, tile.t() @ x)
    if dtype != torch.bfloat16:  # of which a sum is never accumulated
        products.weight_gradient(tile, x, dw, accumulate=True)
        torch.testing.assert_close(dw, 2 * (tile.t() @ x))
        return
    wide = [torch.full(t.shape, float("nan"), device=device) for t in (dx, dw)]
    products.input_gradient(tile, w, wide[0])
    products.weight_gradient(tile, x, wide[1], accumulate=False)
    for a, expected in zip(wide, (tile @ w, tile.t() @ x)):
        torch.testing.assert_close(a, expected.float())
