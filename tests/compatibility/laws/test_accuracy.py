"""Values and gradients are as near to float64 as torch's own, whatever the size and the layout."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from tests.compatibility.compare import same_or_as_good
from tests.compatibility.operations import At, Operation, every_operation, first

#: One row, primes, and the neighbours of tiles.
ROWS = (1, 2, 7, 16, 17, 33)


def laid_out(t: Tensor, rng: random.Random) -> Tensor:
    """The same numbers: contiguous, transposed, with steps between them, or an element behind the start."""
    layout = rng.choice(["contiguous", "transposed", "stepped", "offset"])
    if layout == "transposed":
        return t.mT.contiguous().mT if t.dim() > 1 else t
    if layout == "stepped":
        return torch.stack([t, t], -1)[..., 0]
    if layout == "offset":
        return torch.cat([t.flatten()[:1], t.flatten()])[1:].view(t.shape)
    return t


@pytest.mark.few(60)
@every_operation("values and gradients")
def test_accuracy(operation: Operation, backend: str, dtype: torch.dtype, device: str) -> None:
    rng = random.Random(f"{dtype} {backend}")
    problem = operation.make(At(dtype, device, rng.choice(ROWS)))
    problem = problem._replace(leaves=[laid_out(t, rng) for t in problem.leaves])

    same_or_as_good(*problem.run(first), backend if operation.torchs_own else "triton", "result")
