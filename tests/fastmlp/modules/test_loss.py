"""CrossEntropyLoss and MSELoss against torch's."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import nn

from fastmlp import backends
from fastmlp.modules.loss import CrossEntropyLoss, MSELoss
from tests.numerics import assert_as_good_as_torch

ARGUMENTS: list[dict[str, Any]] = [
    {},
    {"weight": torch.tensor([0.5, 0.0, 2.0, 1.0, 1.5])},
    {"ignore_index": 2, "reduction": "sum"},
    {"label_smoothing": 0.1, "reduction": "none"},
    {"size_average": False},
    {"reduce": False},
]


@pytest.mark.parametrize("backend", ["auto", "triton"])
@pytest.mark.parametrize("arguments", ARGUMENTS, ids=str)
@pytest.mark.filterwarnings("ignore:size_average and reduce:UserWarning")
def test_values_and_gradients(arguments: dict[str, Any], backend: str, device: str) -> None:
    target = torch.randint(5, (33,), device=device)
    x = torch.randn(33, 5, device=device)
    results = []
    for kind, dtype in (
        (CrossEntropyLoss, x.dtype),
        (nn.CrossEntropyLoss, x.dtype),
        (nn.CrossEntropyLoss, torch.float64),
    ):
        logits = x.to(dtype).requires_grad_()
        with backends.use(backend):
            loss = kind(**arguments).to(device, dtype)(logits, target)
            results.append((loss, torch.autograd.grad(loss.sum(), logits)[0]))
    for ours, theirs, exact in zip(*results):
        assert_as_good_as_torch(ours, theirs, exact)


def test_positional_arguments_are_torchs() -> None:
    arguments = (torch.rand(5), None, 2, None, "sum", 0.1)
    ours, theirs = CrossEntropyLoss(*arguments), nn.CrossEntropyLoss(*arguments)
    x, y = torch.randn(7, 5), torch.tensor([0, 1, 2, 3, 4, 2, 1])
    assert torch.equal(ours(x, y), theirs(x, y))
    with pytest.raises(TypeError, match="argument"):
        CrossEntropyLoss(*arguments, 0.1)


def test_is_an_nn_cross_entropy_loss() -> None:
    """Same class tree, repr, buffers and state_dict; checkpoints load both ways; copies and pickles."""
    weight = torch.rand(4)
    ours, theirs = CrossEntropyLoss(weight, z_loss=0.1), nn.CrossEntropyLoss(weight)
    assert isinstance(ours, nn.CrossEntropyLoss)
    assert repr(ours) == repr(theirs)
    assert dict(ours.named_buffers()).keys() == dict(theirs.named_buffers()).keys()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    ours.load_state_dict(nn.CrossEntropyLoss(torch.ones(4)).state_dict(), strict=True)
    x, y = torch.randn(3, 4), torch.tensor([0, 3, 1])
    for copied in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert torch.equal(copied(x, y), ours(x, y))
    assert ours.double().weight.dtype == torch.float64


def test_z_loss_and_inplace_are_passed_on(device: str) -> None:
    x = torch.randn(6, 5, device=device, requires_grad=True)
    y = torch.randint(5, (6,), device=device)
    with backends.use("triton"):
        logits = x * 1
        loss = CrossEntropyLoss(z_loss=0.5, inplace=True)(logits, y)
        plain = nn.CrossEntropyLoss()(x, y) + 0.5 * x.logsumexp(1).square().mean()
        torch.testing.assert_close(loss, plain)
        version = logits._version
        (grad,) = torch.autograd.grad(loss, logits)
    assert logits._version == version + 1
    assert grad.data_ptr() == logits.data_ptr()


@pytest.mark.parametrize("backend", ["auto", "triton"])
@pytest.mark.parametrize(
    "arguments", [{}, {"reduction": "sum"}, {"reduction": "none"}, {"size_average": False}]
)
@pytest.mark.filterwarnings("ignore:size_average and reduce:UserWarning")
def test_squared_error(arguments: dict[str, Any], backend: str, device: str) -> None:
    x, target = torch.randn(33, 5, device=device), torch.randn(33, 5, device=device)
    results = []
    for kind, dtype in ((MSELoss, x.dtype), (nn.MSELoss, x.dtype), (nn.MSELoss, torch.float64)):
        output = x.to(dtype).requires_grad_()
        with backends.use(backend):
            loss = kind(**arguments)(output, target.to(dtype))
            results.append((loss, torch.autograd.grad(loss.sum(), output)[0]))
    for ours, theirs, exact in zip(*results):
        assert_as_good_as_torch(ours, theirs, exact)


def test_is_an_nn_mse_loss() -> None:
    ours = pickle.loads(pickle.dumps(copy.deepcopy(MSELoss(None, None, "sum"))))
    assert isinstance(ours, nn.MSELoss)
    assert repr(ours) == repr(nn.MSELoss(None, None, "sum")) == "MSELoss()"
    x = torch.randn(3, 4)
    assert torch.equal(ours(x, x + 1), torch.tensor(12.0))


def test_shapes_that_differ_are_broadcast_as_torchs(device: str) -> None:
    """With its warning; `TrainStep` and `fit` refuse them."""
    x, target = torch.randn(3, 4, device=device), torch.randn(3, 1, device=device)
    with backends.use("triton"), pytest.warns(UserWarning, match="Using a target size"):
        found = MSELoss()(x, target)
    torch.testing.assert_close(found, (x - target).square().mean())


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning", "ignore:.torch.jit:DeprecationWarning")
def test_scripts_are_torchs(device: str) -> None:
    """By torch.jit.script, saved and loaded: of every argument that torch has."""
    x, y = torch.randn(6, 5, device=device), torch.randint(5, (6,), device=device)
    for ours, target in (
        (CrossEntropyLoss(torch.rand(5), None, 2, None, "none", 0.1), y),
        (CrossEntropyLoss(reduction="sum"), y),
        (MSELoss(reduction="sum"), x + 1),
    ):
        file = io.BytesIO()
        torch.jit.save(torch.jit.script(ours.to(device)), file)
        file.seek(0)
        torch.testing.assert_close(torch.jit.load(file)(x, target), ours(x, target))
    with pytest.raises(torch.jit.Error, match="z_loss: expected 0"):
        torch.jit.script(CrossEntropyLoss(z_loss=0.1))(x, y)
