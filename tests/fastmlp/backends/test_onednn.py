"""Inference on a CPU: nothing is kept, so nothing can be stale; and whatever is odd goes to torch."""

from __future__ import annotations

import copy
import itertools
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import fastmlp
from fastmlp.backends import onednn
from tests.numerics import assert_as_good_as_torch

if onednn.PRODUCT is None:
    pytest.skip("torch has no oneDNN here", allow_module_level=True)


@pytest.fixture(autouse=True)
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows with every product of oneDNN's, which small ones are too."""
    seen: list[int] = []
    product = onednn.PRODUCT
    monkeypatch.setattr(onednn, "PRODUCT", lambda *a: seen.append(1) or product(*a))
    monkeypatch.setattr(onednn, "LEAST_WORK", dict.fromkeys(onednn.LEAST_WORK, 1))
    return seen


def pair(dtype: torch.dtype = torch.float32) -> tuple[nn.Sequential, fastmlp.Sequential]:
    theirs = nn.Sequential(nn.Linear(30, 70), nn.ReLU(), nn.Dropout(), nn.Linear(70, 5, bias=False)).to(dtype)
    theirs.eval()
    return theirs, fastmlp.Sequential(*copy.deepcopy(theirs)).eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "transposed", "sliced", "expanded"])
def test_values(dtype: torch.dtype, layout: str, calls: list[int]) -> None:
    theirs, ours = pair(dtype)
    x = {
        "contiguous": torch.randn(9, 30),
        "transposed": torch.randn(30, 9).t(),
        "sliced": torch.randn(18, 90)[::2, ::3],
        "expanded": torch.randn(1, 30).expand(9, 30),
    }[layout].to(dtype)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert_as_good_as_torch(
                ours(x), theirs(x), copy.deepcopy(theirs).double()(x.double()), roundings=2
            )
    assert len(calls) == (4 if dtype in onednn.LEAST_WORK else 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_layouts_of_the_parameters(dtype: torch.dtype, calls: list[int]) -> None:
    """oneDNN takes every bias as contiguous, and not every weight: F.linear takes what it does not."""
    x, n, k = torch.randn(9, 30).to(dtype), 70, 30
    weights = {
        "contiguous": torch.randn(n, k),
        "transposed": torch.randn(k, n).t(),
        "sliced": torch.randn(2 * n, 3 * k)[::2, ::3],
        "part of a row": torch.randn(n, 2 * k)[:, :k],
        "expanded": torch.randn(1, k).expand(n, k),
        "overlapping": torch.randn(n + k).as_strided((n, k), (1, 1)),
        "offset": torch.randn(n * k + 1)[1:].view(n, k),
        "negative": torch._neg_view(torch.randn(n, k)),
    }
    biases = {
        "column": torch.randn(n, 3)[:, 1],
        "expanded": torch.zeros(1).expand(n),
        "offset": torch.randn(n + 1)[1:],
        "negative": torch._neg_view(torch.randn(n)),
        "negative column": torch._neg_view(torch.randn(n, 3)[:, 1]),
    }
    for (name, weight), (of_bias, bias) in itertools.product(weights.items(), biases.items()):
        w, b = _in(dtype, weight), _in(dtype, bias)
        layer = nn.Linear(k, n)
        layer.weight, layer.bias = nn.Parameter(w), nn.Parameter(b)
        with torch.no_grad():
            theirs = nn.functional.linear(x, w, b)
            for ours in (fastmlp.functional.linear_act(x, w, b, None), fastmlp.Sequential(layer)(x)):
                torch.testing.assert_close(ours, theirs, msg=f"weight {name}, bias {of_bias}")
    by_onednn = ("contiguous", "transposed", "offset", "negative"), ("offset", "negative")
    assert len(calls) == (2 * len(by_onednn[0]) * len(by_onednn[1]) if dtype in onednn.LEAST_WORK else 0)


def _in(dtype: torch.dtype, tensor: torch.Tensor) -> torch.Tensor:
    """The same layout in another dtype."""
    memory = torch.empty(tensor.untyped_storage().nbytes() // tensor.itemsize)
    cast = memory.set_(tensor.untyped_storage()).to(dtype)
    cast = cast.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())
    return torch._neg_view(cast) if tensor.is_neg() else cast


def test_on_this_processor() -> None:
    """In every dtype the product is there or left alone: bfloat16 takes AVX-512, and raises without it."""
    assert onednn.PRODUCT is not None
    for dtype in onednn.LEAST_WORK:
        x, w = torch.ones(3, 4, dtype=dtype), torch.ones(5, 4, dtype=dtype)
        assert torch.equal(onednn.PRODUCT(x, w, None, "none", [], ""), torch.full((3, 5), 4, dtype=dtype))


def test_nan_and_infinity(calls: list[int]) -> None:
    theirs, ours = pair()
    x = torch.randn(8, 30)
    x[0, 0], x[1, 1], x[2, 2] = float("nan"), float("inf"), -float("inf")
    with torch.no_grad():
        for net in (theirs, ours):
            net[0].weight[5, 6] = float("nan")
        hidden = [nn.Sequential(net[0], net[1]) for net in (theirs, ours)]
        a, b = hidden[0](x), fastmlp.Sequential(*hidden[1])(x)
        torch.testing.assert_close(b, a, equal_nan=True)
        torch.testing.assert_close(ours(x), theirs(x), equal_nan=True)
    assert calls


def test_every_kind_of_write_shows() -> None:
    theirs, ours = pair()
    x = torch.randn(9, 30)
    other = {k: v * 0.5 for k, v in theirs.state_dict().items()}
    writes = [
        lambda n: n[0].weight.data.mul_(1.5),
        lambda n: n[0].weight.detach().numpy().__imul__(0.5),
        lambda n: n.load_state_dict(other),
        lambda n: n[3].weight.copy_(torch.ones(5, 70)),
        lambda n: setattr(n[0], "weight", nn.Parameter(torch.full((70, 30), 0.1))),
        lambda n: setattr(n[0].weight, "data", torch.full((70, 30), 0.2)),
        lambda n: n.share_memory(),
    ]
    with torch.no_grad():
        for write in writes:
            for net in (theirs, ours):
                write(net)
            torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-6)


def test_what_is_odd_goes_to_torch(calls: list[int]) -> None:
    theirs, ours = pair()
    x = torch.randn(9, 30)
    assert torch.equal(ours(x), theirs(x))  # autograd records
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(ours(x), theirs(x))
        with FlopCounterMode(display=False) as flops:
            ours(x)
        assert flops.get_total_flops() == 2 * 9 * (30 * 70 + 70 * 5)
        assert torch.equal(torch.func.vmap(ours)(x[None]), torch.func.vmap(theirs)(x[None]))
        with torch.backends.mkldnn.flags(enabled=False):
            assert torch.equal(ours(x), theirs(x))
        for odd in (x.double(), x[:, :29], x.to("meta"), x[None, :0]):
            try:
                expected = theirs(odd)
            except Exception as error:
                with pytest.raises(type(error)):
                    ours(odd)
            else:
                assert ours(odd).shape == expected.shape
        assert not calls
        seen = []
        ours[1].register_forward_hook(lambda m, i, o: seen.append(i[0].min()))
        ours(x)
        assert seen[0] < 0  # what the hook saw was not written over
    graph = torch.jit.trace(ours.eval(), x).inlined_graph
    assert "mkldnn" not in str(graph)


def test_threads() -> None:
    """The same module at once from several threads."""
    theirs, ours = pair()
    inputs = [torch.randn(n, 30) for n in range(1, 33)]

    def run(x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return ours(x)

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(run, inputs))
    for x, y in zip(inputs, results):
        torch.testing.assert_close(y, theirs(x), rtol=1e-5, atol=1e-6)


def test_functional_chain(calls: list[int]) -> None:
    x, w, b = torch.randn(9, 30), torch.randn(7, 30), torch.randn(7)
    torch.testing.assert_close(
        fastmlp.functional.linear_act(x, w, b), torch.relu(nn.functional.linear(x, w, b))
    )
    assert not calls
    with torch.no_grad():
        fastmlp.functional.linear_act(x, w, b)
    assert calls
