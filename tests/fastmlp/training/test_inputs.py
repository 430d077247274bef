"""What fit takes, and what it says of the rest, before anything is written."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import fastmlp
from fastmlp.data import Samples
from fastmlp.training import accuracy, evaluate, fit

X, Y = torch.randn(20, 5), torch.randint(3, (20,))


class Items(Dataset[Any]):
    def __init__(self, item: Any) -> None:
        self.item = item

    def __len__(self) -> int:
        return 4

    def __getitem__(self, i: int) -> Any:
        return self.item


def picture() -> Any:
    from PIL import Image

    return Image.new("L", (2, 2))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"x": X}, r"train: expected Images, Samples, a pair .* got a dict of x"),
        ((X, Y, Y), r"train: expected Images, .* got a tuple of 3"),
        (([[1.0]], [0]), r"train: expected Images, .* got a tuple of 2 with a list of 1"),
        (X, r"train: expected Images, .* got a Tensor"),
        (X.numpy(), r"train: expected examples \(features, target\), got a ndarray"),
        (Items({"image": 1, "label": 2}), r"train: expected examples .* got a dict of image, label; wrap"),
        (Items(X[0]), r"train: expected examples \(features, target\), got a Tensor; wrap"),
        (Items((1.0, 2)), r"features are a tensor or an array, got a float"),
        (Items((X[0], "cat")), r"target is a number, a tensor or an array, got a str"),
        (lambda: Items((picture(), 1)), r"got a PIL image; torchvision\.transforms\.ToTensor\(\) makes one"),
        (DataLoader(Items({"a": X[0], "b": 1})), r"train: expected batches .* got a dict of a, b; wrap"),
        (DataLoader(Items((X[0], "cat"))), r"expected batches of two tensors .* a Tensor and a tuple of 1"),
        ((X.numpy(), Y.numpy()[:9]), r"train: expected labels \(20,\) torch\.int64, got \(9,\)"),
        ((X.numpy().astype(">f4"), Y.numpy()), r"train: expected an array that torch can read, got >f4"),
        (
            (X.numpy()[::-1], Y.numpy()),
            r"train: expected an array that torch can read, .* strides \(-20, 4\)",
        ),
        ((X.numpy().astype(np.int32), Y.numpy()), r"features that are floating or uint8, got torch\.int32"),
        ((X.numpy()[:0], Y.numpy()[:0]), r"train: expected at least one example, got \(0, 5\)"),
    ],
    ids=lambda value: "" if isinstance(value, str) else None,
)
def test_other_things(data: Any, message: str) -> None:
    net = fastmlp.MLP(5, [3])
    before = [p.clone() for p in net.parameters()]
    with pytest.raises(ValueError, match=message):
        fit(net, data() if callable(data) and not isinstance(data, Dataset) else data)
    assert all(map(torch.equal, net.parameters(), before))


def test_targets_that_do_not_fit() -> None:
    """Each with the loss that wants others; the test set too."""
    net = fastmlp.MLP(5, [3])
    targets, mse = torch.randn(20, 3), nn.MSELoss()
    with pytest.raises(
        ValueError,
        match=r"train: expected labels \(20,\) torch\.int64 for CrossEntropyLoss, got \(20, 3\) "
        r"torch\.float32; regression takes loss=nn\.MSELoss",
    ):
        fit(net, (X, targets))
    with pytest.raises(
        ValueError,
        match=r"train: expected floating targets \(20, 3\), the shape of the net's outputs, for MSELoss, got "
        r"\(20,\) torch\.int64",
    ):
        fit(net, (X, Y), loss=mse)
    for wrong in (targets[:, 0], targets[:, :2], targets[..., None]):
        with pytest.raises(ValueError, match=r"train: expected floating targets \(20, 3\), .* got \(20"):
            fit(net, (X, wrong), loss=mse)
    with pytest.raises(ValueError, match=r"train: expected targets \(20, \.\.\.\), got \(9, 3\)"):
        fit(net, (X, targets[:9]), loss=mse)
    with pytest.raises(ValueError, match=r"train: expected targets torch\.float32 .* got torch\.float64"):
        fit(net, (X, targets.double()), loss=mse)
    with pytest.raises(ValueError, match=r"test: expected floating targets \(20, 3\)"):
        fit(net, (X, targets), (X, targets[:, :1]), loss=mse)
    with pytest.raises(ValueError, match="test: expected labels from 0 to 2, got 0 to 3"):
        fit(net, (X, Y), (X, torch.arange(20) % 4))
    with pytest.raises(ValueError, match=r"data: expected labels \(N,\)"):
        accuracy(net, (X, targets))
    with pytest.raises(ValueError, match=r"data: expected labels .* for CrossEntropyLoss"):
        evaluate(net, (X, targets))


def test_regression_on_diabetes(device: str) -> None:
    """A linear net by gradient descent ends where least squares does; no accuracies."""
    train, test = fastmlp.data.named("diabetes")
    assert isinstance(train, Samples)
    net = fastmlp.Sequential(nn.Linear(10, 1)).to(device)
    options: dict[str, Any] = {"loss": nn.MSELoss(), "device": device, "lr": 0.1}
    history = fit(net, train, test, epochs=80, batch_size=353, **options)
    columns = torch.cat([train.x, torch.ones(len(train), 1)], 1)
    best = columns @ torch.linalg.lstsq(columns, train.y).solution
    last = history.epochs[-1]
    assert last.train_loss == pytest.approx(nn.functional.mse_loss(best, train.y).item(), rel=0.03)
    assert (last.train_accuracy, last.test_accuracy) == (None, None)
    score = evaluate(net, test, nn.MSELoss())
    assert last.test_loss == score.loss == pytest.approx(0.5, abs=0.2)
    assert score.accuracy is None
    assert "accuracy" not in str(last)
    assert "test loss" in str(last)


class Mixed(nn.Module):
    """A loss of its own, of outputs and targets of whatever shape."""

    def forward(self, outputs: Tensor, target: Tensor) -> Tensor:
        return (outputs.sum(1) - target).abs().mean()


@pytest.mark.parametrize(
    ("loss", "y"), [(nn.L1Loss(), X[:, :3]), (nn.BCEWithLogitsLoss(), X[:, :3].sigmoid()), (Mixed(), X[:, 0])]
)
def test_other_losses(loss: nn.Module, y: Tensor, device: str) -> None:
    history = fit(fastmlp.MLP(5, [3]), (X, y), (X, y), epochs=5, loss=loss, device=device)
    assert history.epochs[-1].train_loss < history.epochs[0].train_loss
    assert history.engine == "eager"
    assert "the loss is no" in history.reason


def test_the_loss_on_the_test_set(device: str) -> None:
    """The mean over all that counts, whatever the batches: weights and ignored labels included."""
    net = fastmlp.MLP(5, [3], device=device)
    weight = torch.tensor([1.0, 2.0, 0.5], device=device)
    for loss in (fastmlp.CrossEntropyLoss(weight, ignore_index=1), nn.CrossEntropyLoss(reduction="sum")):
        expected = loss(net(X.to(device)), Y.to(device)).item()
        expected /= 20 if loss.reduction == "sum" else 1
        for size in (20, 3):
            assert evaluate(net, (X, Y), loss, batch_size=size).loss == pytest.approx(expected, rel=1e-5)
