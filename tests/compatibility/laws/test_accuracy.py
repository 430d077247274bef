"""Values and gradients are as near to float64 as torch's own, whatever the size and the layout."""

from __future__ import annotations

import random

import pytest
import torch

from tests.compatibility.compare import same_or_as_good
from tests.compatibility.operations import At, Operation, every_operation, first
from tests.compatibility.problems import laid_out

#: One row, primes, and the neighbours of tiles.
ROWS = (1, 2, 7, 16, 17, 33)


@pytest.mark.few(60)
@every_operation("values and gradients")
def test_accuracy(operation: Operation, backend: str, dtype: torch.dtype, device: str) -> None:
    rng = random.Random(f"{dtype} {backend}")
    problem = operation.make(At(dtype, device, rng.choice(ROWS)))
    problem = problem._replace(leaves=[laid_out(t, rng) for t in problem.leaves])

    same_or_as_good(*problem.run(first), operation.judged(backend), "result")
