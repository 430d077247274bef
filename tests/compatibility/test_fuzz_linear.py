"""Linear layers and chains of them on whatever Hypothesis thinks of, against torch's own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from fastmlp import backends, functional
from fastmlp.activations import NAMES, TABLE, Act
from fastmlp.backends import onednn
from fastmlp.functional import Layer
from tests.fuzzing import LAYOUTS, SEEDS, SIZES, SPECIALS, fuzz, judge, sprinkle, tensor


@pytest.fixture(params=["torch", "triton", "auto"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Also what runs by default; on a CPU small products then take oneDNN's way too."""
    monkeypatch.setattr(onednn, "LEAST_WORK", dict.fromkeys(onednn.LEAST_WORK, 1))
    with backends.use(request.param):
        yield request.param


class Case(NamedTuple):
    """A chain of layers, and what is wanted of it."""

    rows: tuple[int, ...] = (3,)
    widths: tuple[int, ...] = (5, 4)
    act: str = "relu"
    slope: float = 0.0  # of leaky_relu
    slopes: int = 1  # of PReLU: 1, or 0 for one a feature
    bias: bool = True
    layouts: tuple[str, str, str] = ("contiguous", "contiguous", "contiguous")  # input, weights, upstream
    special: str = "none"
    where: str = "input"
    scale: float = 1.0
    needs: str = "both"  # of the gradients
    plan: str = "auto"
    seed: int = 0


CASES = st.builds(
    Case,
    rows=st.lists(SIZES, min_size=0, max_size=3).map(
        lambda sizes: tuple(min(s, 7) for s in sizes[1:]) + tuple(sizes[:1])
    ),
    widths=st.lists(SIZES, min_size=2, max_size=4).map(tuple),
    act=st.sampled_from(NAMES),
    slope=st.sampled_from([0.0, 0.01, 0.3, 1.0, -0.2]),
    slopes=st.sampled_from([0, 1]),
    bias=st.booleans(),
    layouts=st.tuples(LAYOUTS, LAYOUTS, LAYOUTS),
    special=st.sampled_from(list(SPECIALS)),
    where=st.sampled_from(["input", "weight", "bias", "upstream"]),
    scale=st.sampled_from([1.0, 1.0, 1e-3, 30.0]),
    needs=st.sampled_from(["both", "both", "input", "params", "none"]),
    plan=st.sampled_from(["auto", "layers"]),
    seed=SEEDS,
)


def check(case: Case, dtype: torch.dtype, device: str, equal: bool) -> None:
    torch.manual_seed(case.seed)
    k, *outs = case.widths
    x = tensor((*case.rows, k), case.layouts[0], dtype, device, case.scale)
    layers = []
    for n in outs:
        weight = tensor((n, k), case.layouts[1], dtype, device, max(k, 1) ** -0.5)
        bias = tensor((n,), "contiguous", dtype, device) if case.bias else None
        slope = tensor((case.slopes or n,), "contiguous", dtype, device) if case.act == "prelu" else None
        layers.append((weight, bias, slope))
        k = n
    upstream = tensor((*case.rows, k), case.layouts[2], dtype, device)
    target = {"input": x, "weight": layers[0][0], "bias": layers[-1][1], "upstream": upstream}[case.where]
    if target is not None:
        sprinkle(target, case.special)
    x.requires_grad_(case.needs in ("both", "input"))
    for each in layers:
        for t in each:
            if t is not None:
                t.requires_grad_(case.needs in ("both", "params"))

    def results(y: Tensor, inputs: list[Tensor | None], upstream: Tensor) -> list[Tensor | None]:
        wanted = [t for t in inputs if t is not None and t.requires_grad]
        return [y, *(torch.autograd.grad(y, wanted, upstream, allow_unused=True) if wanted else ())]

    def ours(cast):
        act = Act(TABLE[case.act], case.slope if case.act == "leaky_relu" else 0.0)
        chain = [Layer(w, b, act._replace(weight=s)) for w, b, s in layers]
        with torch.set_grad_enabled(case.needs != "none"):
            y = functional.chain(x, chain, case.plan)
        return results(y, [x, *(t for each in layers for t in each)], upstream)

    def theirs(cast):
        y = first = cast(x)
        inputs = [first]
        with torch.set_grad_enabled(case.needs != "none"):
            for each in layers:
                w, b, s = map(cast, each)
                inputs += [w, b, s]
                slope = s if s is not None else case.slope if case.act == "leaky_relu" else 0.0
                y = TABLE[case.act].function(F.linear(y, w, b), slope)
        return results(y, inputs, cast(upstream))

    judge(ours, theirs, equal, roundings=2 * len(layers))


@pytest.mark.feature("Fuzzing", "linear layers: sizes, layouts, activations, special values")
@fuzz(10)
@given(case=CASES)
def test_linear(case: Case, backend: str, dtype: torch.dtype, device: str) -> None:
    check(case, dtype, device, equal=backend == "torch" or dtype == torch.float64)
