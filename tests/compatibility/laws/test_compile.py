"""torch.compile has one graph of it, and make_fx a trace; both compute what eager computes."""

from __future__ import annotations

import random
from types import CellType

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.fx.experimental.proxy_tensor import make_fx

from tests.compatibility.compare import same_or_as_good
from tests.compatibility.operations import OPERATIONS, Operation, every_node, every_operation, weighted
from tests.compatibility.problems import At, Function

#: Dynamo makes no parameters, and here the function makes its PReLU.
OF_A_NEW_MODULE = ("linear_act: PReLU, one slope", "linear_act: PReLU, a slope each")


@pytest.mark.few(10)
@every_operation("torch.compile, fullgraph", [name for name in OPERATIONS if name not in OF_A_NEW_MODULE])
@pytest.mark.parametrize("backend", ["torch", "triton"], indirect=True)
def test_compile(operation: Operation, backend: str, request: pytest.FixtureRequest, device: str) -> None:
    """In a dtype that is drawn, with gradients of all leaves or of some."""
    rng = random.Random(request.node.name)
    problem = operation.make(At(rng.choice([torch.float32, torch.float16, torch.bfloat16]), device))
    places = range(len(problem.leaves))
    wanted = rng.choice([places, rng.sample(places, rng.randint(1, len(places)))])

    def derive(function: Function, leaves: list[Tensor]) -> list[Tensor]:
        given = [t if i in wanted else t.detach() for i, t in enumerate(leaves)]
        value = function(*given)
        return [value, *torch.autograd.grad(value, [given[i] for i in wanted], weighted(value))]

    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = problem._replace(ours=torch.compile(problem.ours, fullgraph=True, backend=counter))
    for _ in range(2):
        same_or_as_good(*compiled.run(derive), operation.judged(backend), "result")
    assert counter.frame_count == 1


def held(function: Function) -> list[CellType]:
    """Where a function has tensors of its batch: targets, and weights of its rows."""
    return [cell for cell in function.__closure__ or () if isinstance(cell.cell_contents, Tensor)]


@pytest.mark.few(8)
@every_node
@pytest.mark.feature("Every operation", "make_fx: a trace for other numbers, a symbolic one for other sizes")
@pytest.mark.parametrize(("mode", "rows"), [("real", 6), ("symbolic", 15)])
def test_make_fx(mode: str, rows: int, operation: Operation, backend: str, device: str) -> None:
    problem, other = operation.make(At(device=device)), operation.make(At(device=device, rows=rows))
    cells, many = held(problem.ours), len(problem.leaves)

    def function(*tensors: Tensor) -> Tensor:
        for cell, tensor in zip(cells, tensors[many:], strict=True):
            cell.cell_contents = tensor
        return problem.ours(*tensors[:many])

    constants = [cell.cell_contents for cell in cells]
    trace = make_fx(function, tracing_mode=mode, _allow_non_fake_inputs=True)
    traced = trace(*problem.leaves, *constants)
    found = traced(*other.leaves, *(cell.cell_contents for cell in held(other.ours)))
    torch.testing.assert_close(found, other.torchs(*other.leaves))
