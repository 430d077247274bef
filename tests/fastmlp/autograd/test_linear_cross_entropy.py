"""The node of linear_cross_entropy: which gradients its sweeps make and when, and what they launch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastmlp import backends
from fastmlp.functional import linear_cross_entropy
from fastmlp.kernels.launch import record_launches
from tests.references import linear_cross_entropy as reference

BACKENDS = ("triton", "auto")


@pytest.fixture(autouse=True)
def _low_threshold(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a small problem runs in tiles on a CPU, and in several of them."""
    monkeypatch.setattr("fastmlp.functional.linear_loss._CPU_ELEMENTS", 1)
    monkeypatch.setattr("fastmlp.autograd.tile_sizes._LEAST", 0)


@pytest.mark.few(5)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (1, 2)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_some_and_again(
    wanted: tuple[int, ...], reduction: str, backend: str, dtype: torch.dtype, device: str
) -> None:
    """A leaf has the gradient that it has beside the others; of a second backward bit for bit."""
    data = [torch.randn(s, device=device).to(dtype) for s in ((40, 8), (301, 8), (301,))]
    target = torch.randint(301, (40,), device=device)

    def grads(wanted: tuple[int, ...]) -> tuple[Tensor, ...]:
        x, w, b = leaves = [t.clone().requires_grad_(i in wanted) for i, t in enumerate(data)]
        with backends.use(backend):
            loss = linear_cross_entropy(x, w, target, linear_bias=b, reduction=reduction)
        of = loss, [leaves[i] for i in wanted], torch.ones_like(loss)
        found = torch.autograd.grad(*of, retain_graph=True)
        assert all(map(torch.equal, found, torch.autograd.grad(*of)))
        return found

    torch.testing.assert_close(grads(wanted), tuple([grads((0, 1, 2))[i] for i in wanted]))


@pytest.mark.parametrize("backend", BACKENDS)
def test_loss_scaling_of_half_precision(backend: str, device: str) -> None:
    """A gradient of 1/N² passes float16 when the loss is scaled, as in torch; and does without."""
    x = torch.randn(200, 8, device=device).half().requires_grad_()
    w = (torch.randn(300, 8, device=device) / 3).half().requires_grad_()
    target = torch.randint(300, (200,), device=device)
    exact = [t.detach().double().requires_grad_() for t in (x, w)]
    wanted = torch.autograd.grad(reference(*exact, target), exact)
    for scale in (1.0, 2.0**14):
        with backends.use(backend):
            loss = linear_cross_entropy(x, w, target).float() * scale
        for got, exactly in zip(torch.autograd.grad(loss, (x, w)), wanted):
            error = (got.double() / scale - exactly).norm() / exactly.norm()
            assert error < (4e-3 if scale > 1 else 4e-2), scale


@pytest.mark.parametrize(("dtype", "launches"), [(torch.float32, 8), (torch.bfloat16, 12)], ids=str)
def test_launches(dtype: torch.dtype, launches: int, device: str) -> None:
    """Two a tile of rows, loss and gradient; and one a tile of classes, which float32 does not need."""
    x = torch.randn(64, 4, device=device).to(dtype).requires_grad_()
    w = torch.randn(512, 4, device=device).to(dtype).requires_grad_()
    with backends.use("triton"), record_launches() as seen:
        linear_cross_entropy(x, w, torch.zeros(64, device=device).long()).backward()
    assert len(seen) == launches, [launch.name for launch in seen]
    assert {launch.name for launch in seen} == {
        "cross_entropy_forward_kernel",
        "cross_entropy_backward_kernel",
    }
