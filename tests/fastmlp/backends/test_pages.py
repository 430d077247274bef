"""Memory that is kept is what torch.empty_like gives, and never somebody else's."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fastmlp import functional
from fastmlp.backends import pages


@pytest.fixture(autouse=True)
def nothing_kept(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Small tensors count as large ones, and no test finds another's."""
    monkeypatch.setattr(pages, "_LEAST", 0)
    pages.release()
    yield
    pages.release()


@pytest.mark.parametrize("least", [0, 1 << 40])
@pytest.mark.parametrize("shape", [(1,), (3, 5), (600, 1000)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_as_empty_like(
    least: int, shape: tuple[int, ...], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "_LEAST", least)
    x = torch.randn(shape, dtype=dtype)
    for _ in range(3):
        made = pages.large_like(x)
        assert (made.shape, made.dtype, made.stride()) == (x.shape, x.dtype, x.stride())
        assert not made.requires_grad
        assert torch.equal(made.copy_(x), x)


def address(x: Tensor) -> int:
    return pages.large_like(x).data_ptr()


def test_what_nobody_holds_is_used_again() -> None:
    x = torch.empty(600, 1000)
    first = address(x)
    block = torch.empty(600, 1000)  # takes the place, had it been given back
    assert address(x) == first != block.data_ptr()
    assert address(x.view(1000, 600)) == first
    assert address(torch.empty(300, 1000, dtype=torch.float64)) == first
    pages.release()
    assert pages._kept == []


@pytest.mark.parametrize(
    "hold",
    [
        lambda made: made,
        lambda made: made[5:7, 1],
        lambda made: made.numpy(),
        lambda made: made.untyped_storage(),
        lambda made: made.storage(),
        lambda made: torch.from_dlpack(made),
        lambda made: memoryview(made.numpy()),
        lambda made: made.detach(),
        lambda made: (made.share_memory_(), None)[1],  # another process may have it
        lambda made: (made.untyped_storage().resize_(64), None)[1],
    ],
    ids=["itself", "a view", "NumPy's", "its storage", "a typed storage", "DLPack's", "a memoryview",
         "detached", "shared", "resized"],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
def test_what_somebody_holds_is_not(hold: Callable[[Tensor], Any]) -> None:
    x = torch.zeros(600, 1000)
    made = pages.large_like(x)
    where, held = made.data_ptr(), hold(made)
    shared = made.is_shared()
    del made
    again = pages.large_like(x)
    assert again.untyped_storage().nbytes() == 4 * x.numel()
    if held is not None:
        assert again.data_ptr() != where
    assert not again.is_shared() or not shared


@pytest.mark.parametrize("attribute", ["_MOST", "_holders"])
def test_nothing_is_kept(attribute: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than there may be, or where torch does not tell who holds what."""
    monkeypatch.setattr(pages, attribute, 100 if attribute == "_MOST" else None)
    address(torch.empty(600, 1000))
    assert pages._kept == []


def test_only_the_last_one_is_kept() -> None:
    address(torch.empty(600, 1000))
    address(torch.empty(600, 2000))
    assert [storage.nbytes() for storage in pages._kept] == [600 * 2000 * 4]


def test_threads_have_their_own() -> None:
    x = torch.empty(50, 1000)

    def fill(number: int) -> bool:
        made = pages.large_like(x).fill_(number)
        return all(bool((made.add_(1) == number + i).all()) for i in range(1, 20))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(fill, range(400)))


def gradient(loss: Callable[..., Tensor], x: Tensor, y: Tensor) -> Tensor:
    leaf = x.clone().requires_grad_()
    loss(leaf, y).backward()
    assert leaf.grad is not None
    return leaf.grad


def test_gradients_that_live_are_not_written_over() -> None:
    """Of one loss after another, and of two at once; and of a step, whose memory the next one has."""
    x, y = torch.randn(2048, 1024), torch.randint(1024, (2048,))
    kept = gradient(functional.cross_entropy, x, y)
    before = copy.deepcopy(kept)
    other = gradient(functional.cross_entropy, 2 * x, y)
    torch.testing.assert_close(kept, before, rtol=0, atol=0)
    one, two = (t.clone().requires_grad_() for t in (x, 3 * x))
    (functional.cross_entropy(one, y) + functional.cross_entropy(two, y)).backward()
    del other
    for scale, grad in ((1, one.grad), (3, two.grad)):
        torch.testing.assert_close(grad, gradient(F.cross_entropy, scale * x, y))
    assert [storage.nbytes() for storage in pages._kept] == [x.nbytes]  # it has gone through here at all
    for scale in (1, 2, 3):
        torch.testing.assert_close(
            gradient(functional.cross_entropy, scale * x, y), gradient(F.cross_entropy, scale * x, y)
        )
