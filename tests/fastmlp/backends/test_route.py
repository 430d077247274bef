"""A key says all that a call may depend on, and a route is found by nothing less."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode

from fastmlp import backends, profiler_ranges
from fastmlp.backends import route
from fastmlp.backends.route import Last, Like, Routes, circumstances, describe
from fastmlp.costs.ceilings import tf32
from fastmlp.functional import mlp
from fastmlp.kernels.launch import record_launches


def matrix() -> Tensor:
    """Aligned, as torch allocates."""
    return torch.zeros(4, 6)


#: Others that are no different to a launch, and others that are.
ALIKE: dict[str, Callable[[], Tensor]] = {
    "values": lambda: torch.ones(4, 6),
    "aligned in a larger one": lambda: torch.zeros(8, 6)[4:].view(4, 6)[:, :],
}
UNLIKE: dict[str, Callable[[], Tensor]] = {
    "dtype": lambda: matrix().half(),
    "shape": lambda: torch.zeros(3, 6),
    "strides": lambda: torch.zeros(6, 4).t(),
    "wider rows": lambda: torch.zeros(4, 8)[:, :6],
    "alignment": lambda: torch.zeros(25)[1:].view(4, 6),
    "requires grad": lambda: matrix().requires_grad_(),
    "type": lambda: nn.Parameter(matrix(), requires_grad=False),
    "device": lambda: matrix().to("meta"),
    "negated": lambda: torch._neg_view(matrix()),
    "sparse": lambda: matrix().to_sparse(),
    "subclass": lambda: matrix().as_subclass(type("Mine", (Tensor,), {})),
}


@pytest.mark.parametrize("guarded", [True, False])
@pytest.mark.parametrize("other", [*ALIKE, *UNLIKE])
def test_like(other: str, guarded: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """By torch's guards and without them; also of tensors of which the first is not aligned."""
    if not guarded:
        monkeypatch.setattr(route, "_guards", None)
    weight, made = torch.zeros(2, 6), (ALIKE | UNLIKE)[other]()
    for first in (matrix(), UNLIKE["alignment"]()):
        given = (first, None, weight)
        like = Like(given, describe(given))
        assert like(given)
        assert like((made, None, weight)) is (describe((made,)) == describe((first,)))
    given = (matrix(), None, weight)
    assert Like(given, describe(given))((made, None, weight)) is (other in ALIKE)


@pytest.mark.parametrize("guarded", [True, False])
def test_like_in_the_same_places(guarded: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bias is no class weight, though they look alike."""
    if not guarded:
        monkeypatch.setattr(route, "_guards", None)
    x, bias, more = matrix(), torch.zeros(4), torch.zeros(4)
    for given in ((x, bias, None), (x, None, bias), (x, bias), (x, bias, more)):
        like = Like(given, describe(given))
        for other in ((x, bias, None), (x, None, bias), (x, bias), (x, bias, more), (x, None, None)):
            same = [t is None for t in other] == [t is None for t in given]
            assert like(other) is same


def test_torch_has_its_guards() -> None:
    """Without them a key is compared member by member, which takes some microseconds more."""
    assert route._guards is not None


@pytest.mark.parametrize("modes", [route.PlainModes, route.Modes])
def test_modes(modes: Any, device: str) -> None:
    """By torch's guard and without it: they hold for as long as nothing of them is another."""
    now = modes()
    for context in (torch.no_grad(), tf32(), torch.autocast(device, torch.bfloat16)):
        with context:
            assert not now.check()
            inside = modes()
            assert inside.check()
        assert now.check()
        assert not inside.check()
    with torch.autocast(device, torch.bfloat16):
        inside = modes()
        with torch.autocast(device, torch.float16):
            assert not inside.check()


def test_modes_that_contradict_each_other() -> None:
    """torch's older name for TF32 raises where the newer one was set to something else."""
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    try:
        matmul.allow_tf32 = True
        now = route.Modes()
        matmul.fp32_precision = "ieee"
        assert not now.check()
        assert route.Modes().check()
    finally:
        matmul.allow_tf32 = False
        matmul.fp32_precision = before


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        return func(*args, **(kwargs or {}))


def test_circumstances(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each that counts makes another key, and where somebody has a say there is none."""
    found = [circumstances("cpu")]
    with backends.use("torch"):
        found.append(circumstances("cpu"))
    with torch.no_grad():
        found.append(circumstances("cpu"))
    with torch.inference_mode():
        found.append(circumstances("cpu"))
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype):
            found.append(circumstances("cpu"))
    with tf32():
        found.append(circumstances("cpu"))
    assert len(set(found)) == len(found)
    assert None not in found
    with _Mode():
        assert circumstances("cpu") is None
    with forward_ad.dual_level():
        assert circumstances("cpu") is None
    seen = []
    torch.func.vmap(lambda x: seen.append(circumstances("cpu")) or x)(torch.zeros(2))  # type: ignore[func-returns-value]
    torch.jit.trace(lambda x: seen.append(circumstances("cpu")) or x * 2, torch.zeros(2), check_trace=False)  # type: ignore[func-returns-value]
    opener = profiler_ranges.set_opener(lambda _: pytest.fail("nobody asks"))
    seen.append(circumstances("cpu"))
    profiler_ranges.set_opener(opener)
    monkeypatch.setenv("FASTMLP_DEBUG", "1")
    seen.append(circumstances("cpu"))
    assert seen
    assert not any(seen)
    monkeypatch.setenv("FASTMLP_DEBUG", "0")
    assert circumstances("cpu") == found[0]


def test_routes_are_bounded() -> None:
    """The oldest goes; of many that are seen once nothing is recorded at once."""
    routes: Routes[int] = Routes()
    assert routes.patience("a key") == 0
    for number in range(3000):
        routes.keep(number, number)
    assert len(routes._known) == 1024
    assert routes.patience("a key") == 1
    assert routes.keep(None, 5) == 5


def test_found_by_what_it_is(device: str) -> None:
    """The same arguments find it, with or without the last call; others, and others' types, do not."""
    routes: Routes[str] = Routes()
    x = torch.zeros(2, 3, device=device)
    with backends.use("triton"):
        last: Last[str] = Last()
        way, key = routes.find("relu", (x,), last)
        assert way is None
        assert key is not None
        routes.keep(key, "by the kernels")
        for _ in range(3):
            assert routes.find("relu", (x,), last)[0] == "by the kernels"
        assert routes.find("relu", (x,), Last())[0] == "by the kernels"
        assert routes.find("tanh", (x,), last)[0] is None
        assert routes.find("relu", (x[:1],), last)[0] is None
        assert routes.find("relu", (x, x), last)[0] is None
        assert routes.find("relu", ("no tensor",), last) == (None, None)  # type: ignore[arg-type]
    if device == "cpu":
        assert routes.find("relu", (x,), last) == (None, None)  # torch's own ops decide for themselves


def test_mlp_goes_by_its_plan_whatever_the_last_was(device: str) -> None:
    x, w1, w2 = (torch.randn(s, device=device) for s in ((6, 5), (4, 5), (3, 4)))
    with backends.use("triton"):
        for plan, count in (("layers", 2), ("whole", 1), ("layers", 2)):
            with record_launches() as launches:
                mlp(x, [w1, w2], plan=plan)
            assert len(launches) == count
