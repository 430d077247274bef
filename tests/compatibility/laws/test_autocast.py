"""Under autocast a result has the dtype and the accuracy of torch's, of tensors in any dtype."""

from __future__ import annotations

from itertools import cycle

import pytest
import torch
from torch import Tensor

from fastmlp.kernels.launch import record_launches
from tests.compatibility.compare import same_or_as_good
from tests.compatibility.operations import At, Function, Operation, every_operation, weighted

#: Leaves under autocast, one after another.
OWN = {
    "float32": (torch.float32,),
    "float16": (torch.float16,),
    "bfloat16": (torch.bfloat16,),
    "float64": (torch.float64,),
    "mixed": (torch.float16, torch.float32),
}


@pytest.mark.few(60)
@every_operation("autocast")
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("own", OWN)
def test_autocast(own: str, dtype: str, operation: Operation, backend: str, device: str) -> None:
    """Of leaves of their ``own`` under autocast to ``dtype``; float64 stays what it is, and no kernel's."""
    cast = getattr(torch, dtype)
    problem = operation.make(At(OWN[own][0], device))
    leaves = [t.to(kind) for t, kind in zip(problem.leaves, cycle(OWN[own]))]

    def derive(function: Function, leaves: list[Tensor]) -> list[Tensor]:
        with torch.autocast(device, cast, cache_enabled=backend != "auto"):
            if torch.__version__ >= (2, 11):  # torch keeps the casts; one older than that without gradients
                with torch.no_grad():
                    function(*leaves)
            value = function(*leaves)
        return [value, *torch.autograd.grad(value, leaves, weighted(value))]

    with record_launches() as launches:
        found = problem._replace(leaves=leaves).run(derive)
    assert not (launches and own == "float64")
    eps = None if own == "float64" else torch.finfo(cast).eps
    same_or_as_good(*found, operation.judged(backend), "result", eps=eps)
