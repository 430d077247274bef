"""Data sets by name, and scikit-learn's."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from fastmlp import data
from fastmlp.data import DataError, Images, Samples, named
from tests.fashion import real_data


def test_digits() -> None:
    """All of them, once, in bytes from 0 to 255; split as the seed says."""
    train, test = named("digits")
    assert isinstance(train, Images)
    assert isinstance(test, Images)
    assert (len(train), len(test), train.features, train.name) == (1437, 360, 64, "digits")
    assert train.classes == tuple("0123456789")
    pixels = torch.cat([train.images, test.images])
    assert (int(pixels.min()), int(pixels.max()), len(pixels.unique())) == (0, 255, 17)
    assert torch.bincount(test.labels).min() > 25
    again, other = named("digits")[0], named("digits", seed=1)[0]
    assert torch.equal(train.images, again.images)  # type: ignore[union-attr]
    assert not torch.equal(train.images, other.images)  # type: ignore[union-attr]


def test_diabetes() -> None:
    """Standardized by the training part alone."""
    train, test = named("diabetes")
    assert isinstance(train, Samples)
    assert isinstance(test, Samples)
    assert (train.x.shape, train.y.shape, test.x.shape, test.y.shape) == (
        (353, 10),
        (353, 1),
        (89, 10),
        (89, 1),
    )
    for part in (train.x, train.y):
        assert part.dtype == torch.float32
        torch.testing.assert_close(part.mean(0), torch.zeros(part.shape[1]), atol=1e-6, rtol=0)
        torch.testing.assert_close(part.std(0, correction=0), torch.ones(part.shape[1]))
    assert 0.01 < test.x.mean(0).abs().max() < 0.5


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """A synthetic set that is drawn in no time."""
    module = sys.modules["fastmlp.data.named"]  # as an attribute that name is the function's
    monkeypatch.setattr(module, "synthetic", lambda seed: data.synthetic(seed, train=20, test=20))


@pytest.mark.usefixtures("few")
def test_fashion_mnist_and_synthetic() -> None:
    train, _ = named("fashion-mnist", real_data())
    assert (train.name, len(train)) == ("Fashion-MNIST", 60_000)
    assert named("synthetic", seed=3)[1].name == "synthetic (seed 3)"


@pytest.mark.usefixtures("few")
def test_every_name_is_known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Only Fashion-MNIST is ever replaced, and says so; the others say what to do."""
    from torchvision import datasets

    def refuse(self: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setenv("FASTMLP_DATA", str(tmp_path))
    monkeypatch.setattr(datasets.MNIST, "download", refuse)  # the others are MNISTs
    said: list[str] = []
    assert [named(name, say=said.append)[0].name.split()[0] for name in ("fashion-mnist", "digits")] == [
        "synthetic",
        "digits",
    ]
    assert len(said) == 1
    for name in ("mnist", "kmnist"):
        with pytest.raises(
            DataError, match=f"{name.upper()} failed: no route.* put its four files, unpacked"
        ):
            named(name, say=said.append)
    with pytest.raises(ValueError, match=r"name: expected one of fashion-mnist, .*, synthetic, got 'cifar'"):
        named("cifar")
    with pytest.raises(ValueError, match="root: expected None, as digits reads no files, got 'here'"):
        named("digits", "here")
    assert len(said) == 1
    assert data.NAMES == ("fashion-mnist", "mnist", "kmnist", "digits", "diabetes", "synthetic")


def test_missing_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(DataError, match=r"scikit-learn cannot be imported .*pip install 'fastmlp\[train\]'"):
        named("digits")


def test_samples() -> None:
    x, y = torch.randn(6, 3), torch.randn(6, 2)
    samples = Samples(x, y, "some")
    assert (len(samples), samples.features, len(samples.subset(2))) == (6, 3, 2)
    assert Samples(x, torch.zeros(6, dtype=torch.int64), "labels").to("cpu").y.dim() == 1
    with pytest.raises(ValueError, match=r"x: expected \(N, features\) floating, got \(6,\) torch\.float32"):
        Samples(x[:, 0], y, "")
    for wrong in (y[:5], y[:, 0], torch.zeros(6, 2, dtype=torch.int64), torch.zeros(6, dtype=torch.int32)):
        with pytest.raises(ValueError, match=r"y: expected \(6, outputs\) floating, or labels \(6,\)"):
            Samples(x, wrong, "")
