"""What the two backends do with a tile of logits is the same: one states what the other computes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastmlp.backends.base import Backend, LossOptions
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
    options = LossOptions(-100 if soft else 5, "mean", smoothing)
    upstream = torch.tensor(0.3, device=device)

    def run(backend: Backend) -> tuple[Tensor, ...]:
        whole, parts = logits.clone(), []
        loss, stats = backend.loss_of_rows(whole, target, weight, options, upstream)
        each = upstream.expand(n, d)
        for first in range(0, c, 32):
            part = logits[:, first : first + 32].clone()
            backend.loss_gradient(part, first, target, weight, stats, each, options, c)
            parts.append(part)
        return loss, whole, torch.cat(parts, 1)

    a, b = run(TorchBackend()), run(TritonBackend())
    for got, expected in zip(a, b):
        assert got.dtype == expected.dtype
        torch.testing.assert_close(got, expected)
    torch.testing.assert_close(a[1], a[2])
    assert a[0].dtype == torch.float32
