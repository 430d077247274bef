"""Launches neither read nor write outside of their arguments, write all of their results and no input."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from fastmlp import backends
from fastmlp.kernels.linear import backward
from tests.compatibility.compare import same
from tests.compatibility.operations import At, Operation, Problem, every_operation
from tests.compatibility.problems import laid_out
from tests.guard import guarded

#: One, parts of a tile, a tile and a tail, one number more than that.
ROWS = (1, 3, 16, 17, 33, 65)


def derived(problem: Problem) -> list[Tensor]:
    """Value and gradients; an upstream gradient of stride 0."""
    leaves = [t.detach().requires_grad_() for t in problem.leaves]
    value = problem.ours(*leaves)
    upstream = torch.full((), 0.7, device=value.device, dtype=value.dtype).expand(value.shape)
    return [value, *torch.autograd.grad(value, leaves, upstream)]


@pytest.mark.few(28)
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@every_operation("guarded launches", backend="triton")
def test_guarded(
    operation: Operation,
    dtype: torch.dtype,
    device: str,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With poison around it each argument gives the same bits, laid out in any way, of stride 0 too."""
    monkeypatch.setattr(backward, "_ROWS_PER_SPLIT", 32)  # a short batch is split as a long one
    rng = random.Random(request.node.name)
    problem = operation.make(At(dtype, device, rng.choice(ROWS)))
    leaves = [laid_out(t, rng) if rng.random() < 0.8 else t[:1].expand_as(t) for t in problem.leaves]
    before = [t.clone() for t in leaves]
    problem = problem._replace(leaves=leaves)
    with backends.use("triton"):
        with guarded() as launches:  # first: what writes outside would break more than this test
            found = derived(problem)
        expected = derived(problem)
    assert launches
    assert all(map(same, leaves, before))
    assert all(map(torch.equal, found, expected))  # and no NaN
