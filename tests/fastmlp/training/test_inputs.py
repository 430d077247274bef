"""What fit takes, and what it says of the rest, before anything is written."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import fastmlp
from fastmlp.data import Samples
from fastmlp.training import accuracy, evaluate, fit
from tests.untouched import untouched

X, Y = torch.randn(20, 5), torch.randint(3, (20,))


class Items(Dataset[Any]):
    def __init__(self, item: Any) -> None:
        self.item = item

    def __len__(self) -> int:
        return 4

    def __getitem__(self, i: int) -> Any:
        return self.item


class Short(Items):
    """Its length is not that of its list."""

    def __init__(self) -> None:
        super().__init__([(X[0], 1)] * 5)

    def __len__(self) -> int:
        return 10

    def __getitem__(self, i: int) -> Any:
        return self.item[i]


def picture() -> Any:
    from PIL import Image

    return Image.new("L", (2, 2))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"x": X}, r"train: expected Images, Samples, a pair .* got a dict of x"),
        ((X, Y, Y), r"train: expected Images, .* got a tuple of 3"),
        ((X, "labels"), r"train: expected Images, .* got a tuple of 2 with a Tensor and a str"),
        (X, r"train: expected Images, .* got a Tensor"),
        (X.numpy(), r"train: expected Images, Samples, a pair \(x, y\) .* got an ndarray"),
        (Items((1, 2)), r"features are a tensor or an array, got an int"),
        (Short(), "train: its length is 10, but example 5 is not there"),
        (
            (X[:, None], Y),
            r"expected labels \(20, 3\) .*; the net gives \(N, 1, 3\) for features \(N, 1, 5\)",
        ),
        ((X[:, :3], Y), r"train: expected features \(N, 5\) torch\.float32, got \(N, 3\) torch\.float32$"),
        (Items({"image": 1, "label": 2}), r"train: expected examples .* got a dict of image, label; wrap"),
        (Items(X[0]), r"train: expected examples \(features, target\), got a Tensor; wrap"),
        (Items((1.0, 2)), r"features are a tensor or an array, got a float"),
        (Items((X[0], "cat")), r"target is a number, a tensor or an array, got a str"),
        (lambda: Items((picture(), 1)), r"got a PIL image; torchvision\.transforms\.ToTensor\(\) makes one"),
        (DataLoader(Items({"a": X[0], "b": 1})), r"train: expected batches .* got a dict of a, b; wrap"),
        (DataLoader(Items((X[0], "cat"))), r"expected batches of two tensors .* a Tensor and a tuple of 1"),
        ((X.numpy(), Y.numpy()[:9]), r"train: expected labels \(20,\) torch\.int64, got \(9,\)"),
        ((X.numpy()[:0], Y.numpy()[:0]), r"train: expected at least one example, got \(0, 5\)"),
        (
            (X, Y + 1),
            r"labels from 0 to 2, got 1 to 3; .* torch\.unique\(y, return_inverse=True\)\[1\] numbers",
        ),
        (
            (X[:, 0], Y),
            r"train: expected features \(N, 5\) torch\.float32, got \(N,\) torch\.float32 \(x\[:, None",
        ),
    ],
    ids=lambda value: "" if isinstance(value, str) else None,
)
def test_other_things(data: Any, message: str) -> None:
    net = fastmlp.MLP(5, [3])
    with untouched(net), pytest.raises(ValueError, match=message):
        fit(net, data() if callable(data) and not isinstance(data, Dataset) else data)


def test_targets_that_do_not_fit() -> None:
    """Each with the loss that wants others; the test set too."""
    net = fastmlp.MLP(5, [3])
    targets, mse = torch.randn(20, 3), nn.MSELoss()
    with pytest.raises(
        ValueError,
        match=r"train: expected labels \(20,\) torch\.int64 for CrossEntropyLoss, or shares of sum 1, got "
        r"\(20, 3\) torch\.float32 of .*; regression takes loss=nn\.MSELoss",
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
    for loss in (None, mse):
        with pytest.raises(
            ValueError, match=r"train: expected (labels|floating targets) .* torch\.complex64"
        ):
            fit(net, (X, targets + 1j), loss=loss)
    with pytest.raises(ValueError, match=r"test: expected floating targets \(20, 3\)"):
        fit(net, (X, targets), (X, targets[:, :1]), loss=mse)
    with pytest.raises(ValueError, match="test: expected labels from 0 to 2, got 0 to 3"):
        fit(net, (X, Y), (X, torch.arange(20) % 4))
    with pytest.raises(ValueError, match=r"data: expected labels \(N,\)"):
        accuracy(net, (X, targets))
    with pytest.raises(
        ValueError, match=r"train: expected labels \(20,\) .* got \(20, 2\) torch\.float32; regr"
    ):
        fit(net, (X, targets[:, :2]))
    with pytest.raises(ValueError, match=r"data: expected labels .* for CrossEntropyLoss"):
        evaluate(net, (X, targets))


def trained(data: Any, outputs: int = 3, **options: Any) -> list[Tensor]:
    """The parameters after an epoch."""
    torch.manual_seed(0)
    net = fastmlp.MLP(5, [4, outputs])
    fit(net, data, epochs=1, batch_size=8, **options)
    return [p.detach() for p in net.parameters()]


@pytest.mark.parametrize(
    ("name", "give"),
    [
        ("train", lambda net, x: fit(net, (x, Y))),
        ("test", lambda net, x: fit(net, (X, Y), (x, Y))),
        ("data", lambda net, x: evaluate(net, (x, Y))),
        ("data", lambda net, x: accuracy(net, (x, Y))),
    ],
    ids=["train", "test", "evaluate", "accuracy"],
)
def test_features_that_do_not_fit(name: str, give: Callable[[nn.Module, Tensor], Any]) -> None:
    """Said alike by all, before anything is learned."""
    net = fastmlp.Sequential(nn.Linear(5, 4), nn.Dropout(0.5), nn.Linear(4, 3))
    for wrong, got in (
        (torch.randn(20, 6), r"\(N, 6\) torch\.float32"),
        (X.double(), r"\(N, 5\) torch\.float64 .*; x\.to\(torch\.float32\) converts them"),
        (X.half(), r"\(N, 5\) torch\.float16 .*; x\.to\(torch\.float32\) converts them"),
        (X[:, None, :, None], r"\(N, 1, 5, 1\) torch\.float32 .*; x\.flatten\(1\) makes rows"),
    ):
        message = rf"{name}: expected features \(N, 5\) torch\.float32, got {got}"
        with untouched(net), pytest.raises(ValueError, match=message):
            give(net, wrong)
    loader = DataLoader(TensorDataset(torch.randn(20, 6), Y), batch_size=8)
    with pytest.raises(ValueError, match=r"train: expected features \(N, 5\) torch\.float32, got \(N, 6\)"):
        fit(net, loader)
    own = nn.Sequential(nn.Conv1d(1, 3, 5), nn.Flatten())
    with pytest.raises(
        ValueError, match=r"expected features that the net takes, got \(N, 1, 5\) torch\.float64 \("
    ):
        evaluate(own, (X.double()[:, None], Y))


def test_a_net_that_takes_whole_numbers() -> None:
    """They stay as they are."""
    net, tokens = nn.Sequential(nn.Embedding(7, 4), nn.Flatten(), nn.Linear(8, 3)), torch.randint(7, (20, 2))
    assert evaluate(net, (tokens, Y)).loss == pytest.approx(
        nn.functional.cross_entropy(net(tokens), Y).item()
    )
    fit(net, (tokens, Y), epochs=1)


def test_features_with_a_gradient() -> None:
    """It is nobody's here."""
    x = X.clone().requires_grad_()
    for data in ((x, Y), (2 * x, Y), DataLoader(TensorDataset(x, Y), batch_size=8)):
        assert fit(fastmlp.MLP(5, [3]), data, epochs=2, engine="eager").epochs
        assert x.grad is None


@pytest.mark.parametrize("engine", ["auto", "eager"])
def test_probabilities(engine: str) -> None:
    """As torch takes them, mixed up or one-hot; labels still tell the accuracy of a test set."""
    hot = nn.functional.one_hot(Y, 3)
    mixed = 0.7 * hot + 0.3 * hot.roll(1, 0)
    weight = torch.tensor([1.0, 2.0, 0.5])
    for loss in (nn.CrossEntropyLoss(weight), fastmlp.CrossEntropyLoss(label_smoothing=0.1)):
        torch.manual_seed(0)
        net = fastmlp.MLP(5, [4, 3])
        theirs = copy.deepcopy(net)
        history = fit(net, (X, mixed), (X, Y), epochs=1, batch_size=20, loss=loss, engine=engine)
        assert history.reason == ("the targets are probabilities" if engine == "auto" else "")
        assert history.epochs[0].train_accuracy is None
        assert history.epochs[0].test_accuracy == accuracy(net, (X, Y))
        value = nn.CrossEntropyLoss(loss.weight, label_smoothing=loss.label_smoothing)(theirs(X), mixed)
        assert history.epochs[0].train_loss == pytest.approx(value.item())
        value.backward()
        torch.optim.SGD(theirs.parameters(), lr=0.1).step()
        for ours, expected in zip(net.parameters(), theirs.parameters()):
            torch.testing.assert_close(ours, expected)
        score = evaluate(net, (X, mixed), loss, batch_size=7)
        assert score.loss == pytest.approx(loss(net(X), mixed).item())
        assert score.accuracy is None
    for ours, expected in zip(trained((X, hot)), trained((X.numpy(), Y.numpy()))):
        torch.testing.assert_close(ours, expected)


def test_labels_of_several_places() -> None:
    """Logits (N, classes, places), as torch's losses have them."""
    x, y = torch.randn(8, 5, 4), torch.randint(5, (8, 20))
    net = fastmlp.Sequential(nn.Linear(4, 20))
    score = evaluate(net, (x, y), batch_size=3)
    assert score.loss == pytest.approx(nn.functional.cross_entropy(net(x), y).item())
    history = fit(net, (x, y), (x, y), epochs=2, batch_size=8)
    assert history.epochs[0].train_loss == pytest.approx(score.loss)
    assert (history.epochs[1].train_accuracy, score.accuracy) == (None, None)
    with pytest.raises(
        ValueError, match=r"train: expected labels \(8, 20\) torch\.int64 .* got \(8, 5\) torch\.int64"
    ):
        fit(net, (x, y[:, :5]))


@pytest.mark.parametrize("loss", [nn.MSELoss(), nn.HuberLoss(), nn.BCEWithLogitsLoss()], ids=repr)
def test_targets_of_one_output(loss: nn.Module) -> None:
    """(N,) are (N, 1), never broadcast to (N, N); whole numbers are numbers."""
    y = (Y > 0).float()
    expected = trained((X, y[:, None]), 1, loss=loss)
    for same in ((X, y), (X, y.long()), (X, y.long()[:, None]), (X.numpy(), y.numpy()), (X, y.bool())):
        assert all(map(torch.equal, trained(same, 1, loss=loss), expected))
        score = evaluate(net := fastmlp.MLP(5, [1]), same, loss)
        assert score == (pytest.approx(loss(net(X), y[:, None]).item()), None)
    loader = DataLoader(TensorDataset(X, y), batch_size=20)
    assert evaluate(net, loader, loss).loss == pytest.approx(score.loss)
    squeezed = nn.Sequential(net, nn.Flatten(0))
    assert evaluate(squeezed, (X, y[:, None]), loss).loss == pytest.approx(score.loss)


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
