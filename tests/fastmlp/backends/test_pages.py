"""Fresh memory is what torch.empty_like gives, whatever its size."""

from __future__ import annotations

import pytest
import torch

from fastmlp.backends import pages


@pytest.mark.parametrize("least", [0, 1 << 40])
@pytest.mark.parametrize("shape", [(1,), (3, 5), (600, 1000)], ids=str)
def test_fresh_like(least: int, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "_LEAST", least)
    x = torch.randn(shape)
    made = pages.fresh_like(x)
    assert (made.shape, made.dtype, made.stride()) == (x.shape, x.dtype, x.stride())
    assert torch.equal(made.copy_(x), x)
