"""Of an empty batch, rows that do not count, NaN, infinities and huge numbers comes what comes of torch's."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.compatibility.compare import same, same_or_as_good
from tests.compatibility.operations import (
    OPERATIONS,
    At,
    Function,
    Operation,
    every_operation,
    first,
    weighted,
)
from tests.compatibility.problems import LAYOUTS


def kinds(t: Tensor) -> Tensor:
    """NaN, an infinity of either sign, or a number."""
    return torch.where(t.isfinite(), 0, t.nan_to_num(2.0, 1.0, -1.0).sign() + t.isnan())


@pytest.mark.few(26)
@every_operation("no rows")
def test_no_rows(operation: Operation, backend: str, dtype: torch.dtype, device: str) -> None:
    problem = operation.make(At(dtype, device, rows=0))
    same_or_as_good(*problem.run(first), backend, "result")


@pytest.mark.few(20)
@pytest.mark.usefixtures("poisoned")
@every_operation("no row counts", [name for name in OPERATIONS if "ignore_index" in name])
def test_no_row_counts(operation: Operation, backend: str, dtype: torch.dtype, device: str) -> None:
    problem = operation.make(At(dtype, device, label=1))
    same_or_as_good(*problem.run(first), operation.judged(backend), "result")


def places(leaves: list[Tensor]) -> list[int]:
    """Which leaves a number may be put into: of a slope that is none a kernel's sums have more NaN."""
    return [i for i, t in enumerate(leaves) if i == 0 or (leaves[i - 1].dim(), t.dim()) != (1, 1)]


@pytest.mark.few(22)
@pytest.mark.usefixtures("poisoned")
@every_operation("NaN, infinities, huge numbers")
def test_special_values(
    operation: Operation, backend: str, dtype: torch.dtype, device: str, request: pytest.FixtureRequest
) -> None:
    """NaN and infinities are where torch has them in this dtype, or in float64."""
    rng = random.Random(request.node.name)
    huge = 100.0 if dtype == torch.float16 else 1e37
    for value in rng.sample([math.nan, math.inf, -math.inf, huge, -huge], 2):
        problem = operation.make(At(dtype, device))
        leaf = rng.choice(places(problem.leaves))
        problem.leaves[leaf].view(-1)[rng.randrange(problem.leaves[leaf].numel())] = value
        for i, (ours, torchs, exact) in enumerate(zip(*problem.run(first), strict=True)):
            what = f"{value} in leaf {leaf}, result {i}"
            assert backend != "torch" or not operation.torchs_own or same(ours, torchs), what
            found = kinds(ours)
            assert ((found == kinds(torchs)) | (found == kinds(exact.to(dtype)))).all(), what
            kept = ours.isfinite() & torchs.isfinite() & exact.isfinite()
            same_or_as_good([ours[kept]], [torchs[kept]], [exact[kept]], "auto", what, roundings=64)


#: Made of one that is contiguous.
UPSTREAMS: dict[str, Callable[[Tensor], Tensor]] = {
    "zero": torch.zeros_like,
    "negative": lambda up: -3 * up,
    "one for all": lambda up: up.flatten()[:1].view([1] * up.dim()).expand_as(up),
    "a row for all": lambda up: up[:1].expand_as(up) if up.dim() else up,
    "transposed": LAYOUTS["transposed"],
    "with steps": LAYOUTS["with steps"],
}


@pytest.mark.few(26)
@pytest.mark.usefixtures("poisoned")
@every_operation("upstream gradients in any layout")
def test_upstream(
    operation: Operation, backend: str, dtype: torch.dtype, device: str, request: pytest.FixtureRequest
) -> None:
    kind = random.Random(request.node.name).choice(list(UPSTREAMS))

    def derive(function: Function, leaves: list[Tensor]) -> list[Tensor]:
        result = function(*leaves)
        return [*torch.autograd.grad(result, leaves, UPSTREAMS[kind](weighted(result)))]

    problem = operation.make(At(dtype, device))
    same_or_as_good(*problem.run(derive), operation.judged(backend), kind)


@pytest.mark.few(22)
@pytest.mark.usefixtures("poisoned")
@every_operation("upstream gradients that are no numbers")
def test_special_upstream(
    operation: Operation, backend: str, dtype: torch.dtype, device: str, request: pytest.FixtureRequest
) -> None:
    """What overflowed shows, wherever it shows with torch: a step may be skipped for it."""
    value = random.Random(request.node.name).choice([math.nan, math.inf, -math.inf])

    def derive(function: Function, leaves: list[Tensor]) -> list[Tensor]:
        result = function(*leaves)
        upstream = torch.ones_like(result)
        upstream.view(-1)[0] = value
        return [*torch.autograd.grad(result, leaves, upstream)]

    ours, torchs, _ = operation.make(At(dtype, device)).run(derive)
    for a, b in zip(ours, torchs, strict=True):
        assert not (a.isfinite() & ~b.isfinite()).any()
