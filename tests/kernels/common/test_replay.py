"""What a call did is done again: on other memory, and never where something else might have been done."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor

from fastmlp.kernels import launch
from fastmlp.kernels.common.dropout import dropout_mask
from fastmlp.kernels.common.replay import Replay
from fastmlp.kernels.launch import record_launches
from fastmlp.kernels.tiles import configs


def counted(function: Any) -> tuple[Replay, list[int]]:
    """``function`` as a `Replay`, and a list that grows with every call of it."""
    calls: list[int] = []

    def called(*tensors: Tensor | None) -> Any:
        calls.append(1)
        return function(*tensors)

    return Replay(called), calls


def masked(x: Tensor, seed: Tensor) -> tuple[Tensor, list[Tensor | None]]:
    """An op, a launch, a view of what it wrote, and another op."""
    mask = dropout_mask((0.5, seed, 3), *x.shape)
    kept = torch.empty(x.shape, device=x.device)
    torch.mul(x, mask, out=kept)
    return kept, [mask[1:], None, x.t()]


def seed(number: int, device: str) -> Tensor:
    return torch.tensor([number], device=device)


def test_the_same_of_other_tensors(device: str) -> None:
    """The second call with a key runs nothing of the function, and gives what it would."""
    replay, calls = counted(masked)
    for number in range(4):
        x = torch.randn(5, 130, device=device)
        kept, (mask, none, view) = replay("key", (x, seed(number, device)))
        expected, (theirs, _, _) = masked(x, seed(number, device))
        assert torch.equal(kept, expected)
        assert torch.equal(mask, theirs)
        assert none is None
        assert view.data_ptr() == x.data_ptr()
        assert view.shape == (130, 5)
    assert len(calls) == 1
    replay("another", (torch.randn(6, 8, device=device), seed(0, device)))
    assert len(calls) == 2


def test_a_tensor_given_twice(device: str) -> None:
    """Each place has a name: the next time they may be two."""
    replay, calls = counted(lambda a, b: a - b)
    x, y = torch.ones(3, device=device), torch.zeros(3, device=device)
    assert replay("key", (x, x)).sum() == 0
    assert replay("key", (x, y)).sum() == 3
    assert len(calls) == 1


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x * x.sum().item(),
        lambda x: x + 1 if bool(x.sum() > 0) else x - 1,
        lambda x: x * torch.tensor([2.0]),
        lambda x: {"a key": x * 2},
    ],
    ids=["item", "if", "constant", "result"],
)
def test_what_values_decide_is_not_recorded(function: Any) -> None:
    """Nor what nobody could see being made."""
    replay, calls = counted(function)
    for x in (torch.ones(1), -torch.ones(1), torch.full((1,), 3.0)):
        ours, theirs = replay("key", (x,)), function(x)
        assert str(ours) == str(theirs)
    assert len(calls) == 3


def test_who_watches_sees_every_launch(device: str) -> None:
    replay, calls = counted(masked)
    given = torch.randn(5, 8, device=device), seed(1, device)
    for _ in range(2):
        with record_launches() as launches:
            replay("key", given)
        assert [one.name for one in launches] == ["dropout_mask_kernel"]
    assert len(calls) == 2


def test_another_tile_is_another_call(device: str) -> None:
    replay, calls = counted(masked)
    given = torch.randn(5, 8, device=device), seed(1, device)
    replay("key", given)
    with configs.override("linear", configs.Tile(16, 16, 16)):
        replay("key", given)
    replay("key", given)
    replay("key", given)
    assert len(calls) == 3


def test_patience() -> None:
    """So many calls are not recorded."""
    calls: list[int] = []

    def add(x: Tensor) -> Tensor:
        calls.append(1)
        return x + 1

    replay = Replay(add, 2)
    for _ in range(5):
        replay("key", (torch.zeros(2),))
    assert len(calls) == 3


def test_nothing_is_held() -> None:
    """Neither arguments nor results of the recorded call live on."""
    replay, _ = counted(lambda x: (x.exp(), x.view(2, 2)))
    x = torch.zeros(4)
    result = replay("key", (x,))
    seen = [weakref.ref(t) for t in (x, *result)]
    del x, result
    gc.collect()
    assert [one() for one in seen] == [None] * 3


_COMPILED = """
import itertools, sys
import torch
from torch import nn
import fastmlp
from fastmlp import functional as F
from benchmarks import stub

seen = []

def leaves(value):
    if isinstance(value, tuple | list):
        for member in value:
            yield from leaves(member)
    elif hasattr(value, "base"):
        yield from (value.base, *value.shape, *value.strides)
    else:
        yield value

class Launcher(stub._Launcher):
    def __call__(self, x, y, z, stream, function, metadata, launch_metadata, enter, leave, *args):
        places, found = {}, []
        for leaf in leaves(args):
            address = leaf.data_ptr() if isinstance(leaf, torch.Tensor) else leaf
            if isinstance(address, int) and address > 1 << 20:  # memory: which one, and how it is aligned
                address = places.setdefault(address, len(places)), address % 16
            if not isinstance(leaf, torch.Tensor) and type(leaf).__name__ in ("constexpr", "dtype"):
                address = str(leaf)
            found.append(address if address != 0 else None)  # no elements
        seen.append((id(self), x, y, z, stream, function, metadata, found))

stub.Driver.launcher_cls = Launcher

def twice(name, call):
    both = []
    for _ in range(3):
        seen.clear()
        call()
        both.append(list(seen))
    assert both[0] and both[1] == both[0] == both[2], (name, both[0], both[1])

def tensors(m, k, n, dtype=torch.float32, offset=0):
    x = torch.randn(m * k + offset).to(dtype)[offset:].view(m, k)
    return x, torch.randn(n, k).to(dtype), torch.randn(n).to(dtype)

with stub.gpu():
    for name, given in {
        "aligned": tensors(64, 32, 16), "four bytes in": tensors(64, 32, 16, offset=1),
        "ones": tensors(7, 1, 1), "ragged": tensors(33, 17, 9), "no bias": (*tensors(64, 32, 16)[:2], None),
        "transposed": (tensors(32, 64, 16)[0].t(), *tensors(64, 32, 16)[1:]),
        "by TMA": tensors(4096, 2048, 2048, torch.bfloat16),
    }.items():
        x, w, b = given
        twice(name, lambda: F.linear_act(x, w, b))
        if name in ("four bytes in", "by TMA"):
            w.requires_grad_()
            twice(f"{name}, backward", lambda: torch.autograd.grad(F.linear_act(x, w, b, "gelu").sum(), w))
    z, t = torch.randn(64, 10, requires_grad=True), torch.randint(10, (64,))
    for reduction in ("mean", "none"):
        twice(reduction, lambda: torch.autograd.grad(F.cross_entropy(z, t, reduction=reduction).sum(), z))
print("the same")
"""


@pytest.mark.deep
@pytest.mark.skipif(not launch.INTERPRETED, reason="a GPU's own tests launch what is compiled")
def test_compiled_kernels_are_launched_as_by_triton() -> None:
    """With every specialization: the recorded launch passes what Triton's own ``run`` did."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", _COMPILED], env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.stdout.split("\n")[-2:] == ["the same", ""], done.stderr[-3000:]
