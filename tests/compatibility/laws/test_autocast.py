"""Under autocast a result has the dtype and the accuracy of torch's, of tensors in any dtype."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.compatibility.compare import same_or_as_good
from tests.compatibility.operations import At, Function, Operation, every_operation, weighted


@pytest.mark.few(140)
@every_operation("autocast")
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("own", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_autocast(own: torch.dtype, dtype: str, operation: Operation, backend: str, device: str) -> None:
    """Of ``own`` under autocast to ``dtype``; of float64 it changes nothing."""
    cast = getattr(torch, dtype)
    problem = operation.make(At(own, device))

    def derive(function: Function, leaves: list[Tensor]) -> list[Tensor]:
        with torch.autocast(device, cast):
            value = function(*leaves)
        return [value, *torch.autograd.grad(value, leaves, weighted(value))]

    exactly = backend if operation.torchs_own else "triton"
    eps = None if own == torch.float64 else torch.finfo(cast).eps
    same_or_as_good(*problem.run(derive), exactly, "result", eps=eps)
