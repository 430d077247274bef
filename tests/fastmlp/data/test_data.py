"""Data: the synthetic set, broken files, the fallback that is said aloud, batches."""

from __future__ import annotations

import hashlib
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fastmlp.data import DataError, Images, batches, fashion_mnist, load, named, synthetic
from fastmlp.data.idx import _FILES
from tests.fashion import real_data


def test_synthetic_is_the_same_for_the_same_seed() -> None:
    train, test = synthetic(seed=0, train=600, test=100)
    again, _ = synthetic(seed=0, train=600, test=100)
    other, _ = synthetic(seed=1, train=600, test=100)
    assert train.images.shape == (600, 28, 28)
    assert train.images.dtype == torch.uint8
    assert len(test) == 100
    assert torch.equal(train.images, again.images)
    assert not torch.equal(train.images, other.images)
    assert torch.bincount(train.labels).tolist() == [60] * 10
    assert 40 < train.images.float().std() < 80


@pytest.mark.deep
def test_synthetic_is_the_same_on_every_machine() -> None:
    """A process without vector units draws the same bits."""
    program = """
import hashlib, torch
from fastmlp.data import synthetic
digest = hashlib.sha256()
for images in synthetic(seed=0, train=600, test=100):
    digest.update(images.images.numpy().tobytes() + images.labels.numpy().tobytes())
print(torch.backends.cpu.get_cpu_capability(), digest.hexdigest())
"""
    environment = os.environ | {"ATEN_CPU_CAPABILITY": "default", "OMP_NUM_THREADS": "1"}
    plain = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    ).stdout.split()
    digest = hashlib.sha256()
    for images in synthetic(seed=0, train=600, test=100):
        digest.update(images.images.numpy().tobytes() + images.labels.numpy().tobytes())
    assert plain == ["DEFAULT", digest.hexdigest()]


def test_synthetic_has_the_shapes_of_fashion_mnist() -> None:
    train, test = synthetic()
    assert (len(train), len(test)) == (60_000, 10_000)
    assert train.features == 784
    assert len(train.classes) == 10


def test_real_data() -> None:
    train, test = fashion_mnist(real_data())
    assert (len(train), len(test)) == (60_000, 10_000)
    assert train.images.dtype == torch.uint8
    assert train.classes[0] == "T-shirt/top"
    assert torch.bincount(train.labels).tolist() == [6000] * 10


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Four valid files of zeros; returns their folder."""
    return zeros(tmp_path, "FashionMNIST")


def zeros(root: Path, folder: str) -> Path:
    raw = root / folder / "raw"
    raw.mkdir(parents=True)
    for name, (magic, header, items) in _FILES.items():
        shape = (items // 784, 28, 28) if header == 16 else (items,)
        (raw / name).write_bytes(struct.pack(f">{header // 4}I", magic, *shape) + bytes(items))
    return raw


@pytest.mark.parametrize(
    ("name", "folder", "title"),
    [
        ("fashion-mnist", "FashionMNIST", "Fashion-MNIST"),
        ("mnist", "MNIST", "MNIST"),
        ("kmnist", "KMNIST", "KMNIST"),
    ],
)
def test_valid_files_load(name: str, folder: str, title: str, tmp_path: Path) -> None:
    raw = zeros(tmp_path, folder)
    train, test = named(name, tmp_path)
    assert (len(train), len(test), train.name, len(train.classes)) == (60_000, 10_000, title, 10)  # type: ignore[union-attr]
    (raw / "t10k-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 2049, 5) + bytes(5))
    with pytest.raises(DataError, match=f"expected 10000 items of {title}"):
        named(name, tmp_path)


def test_images_of_another_shape(files: Path) -> None:
    """As many bytes as there should be."""
    path = files / "t10k-images-idx3-ubyte"
    path.write_bytes(struct.pack(">4I", 2051, 784, 10000, 1) + bytes(7_840_000))
    with pytest.raises(DataError, match=r"\(10000, 28, 28\), got \(784, 10000, 1\)"):
        fashion_mnist(files.parents[1])


@pytest.mark.parametrize("name", list(_FILES))
def test_broken_files_are_named(files: Path, name: str) -> None:
    path = files / name
    good = path.read_bytes()
    broken = {
        good[:-1]: "its header promises",
        good + b"\0": "its header promises",
        good[:5]: "expected a header of",
        b"": "expected a header of",
        b"\x1f\x8b" + good[2:]: "expected the IDX magic number",
        good[:4] + struct.pack(">I", 7) + good[8:]: "its header promises",
        good[:4] + b"\xff" * 12 + good[16:]: "its header promises",
    }
    for content, message in broken.items():
        path.write_bytes(content)
        with pytest.raises(DataError, match=f"{name}: {message}"):
            fashion_mnist(files.parents[1])
    path.unlink()
    with pytest.raises(DataError, match=f"{name}: No such file"):
        fashion_mnist(files.parents[1])
    path.with_name(name + ".gz").touch()
    with pytest.raises(DataError, match="unpack"):
        fashion_mnist(files.parents[1])


def test_a_shorter_set_is_refused(files: Path) -> None:
    (files / "t10k-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 2049, 5) + bytes(5))
    with pytest.raises(DataError, match="expected 10000 items"):
        fashion_mnist(files.parents[1])


def test_labels_out_of_range(files: Path) -> None:
    (files / "t10k-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 2049, 10_000) + bytes([10]) * 10_000)
    with pytest.raises(DataError, match="labels reach 10, expected 0 to 9"):
        fashion_mnist(files.parents[1])


def test_no_network_is_said_aloud(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The synthetic set takes over with a message; where a directory was named it never does."""
    from torchvision.datasets import FashionMNIST

    def refuse(self: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(FashionMNIST, "download", refuse)
    monkeypatch.setenv("FASTMLP_DATA", str(tmp_path / "cache"))
    said: list[str] = []
    train, _ = load(None, said.append)
    assert train.name.startswith("synthetic")
    assert len(said) == 1
    assert "no route to host" in said[0]
    assert "synthetic set instead" in said[0]
    with pytest.raises(DataError, match="No such file"):
        load(tmp_path, said.append)
    assert len(said) == 1


def test_missing_torchvision_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Beside a CPU-only torch another one than beside CUDA's."""
    monkeypatch.setitem(sys.modules, "torchvision.datasets", None)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    with pytest.raises(DataError, match="pip install torch torchvision"):
        fashion_mnist(tmp_path)
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(
        DataError, match=r"this CPU-only torch .* --index-url https://download\.pytorch\.org/whl/cpu"
    ):
        fashion_mnist(tmp_path)


def test_batches_take_every_row_once(device: str) -> None:
    x = torch.arange(96 + 2 * 256, device=device).view(-1, 1).float()
    y = torch.arange(len(x), device=device)
    order = torch.randperm(len(x), device=device)
    sizes, seen = [], []
    for features, labels in batches(x, y, 256, order):
        assert torch.equal(features[:, 0].long(), labels)
        sizes.append(len(labels))
        seen.append(labels)
    assert sizes == [256, 256, 96]
    assert torch.equal(torch.cat(seen), order)


def test_pixels_become_0_to_1(device: str) -> None:
    x = torch.tensor([[0, 51, 255]], dtype=torch.uint8, device=device)
    ((features, _),) = batches(x, torch.zeros(1, dtype=torch.int64, device=device), 8)
    torch.testing.assert_close(features, torch.tensor([[0.0, 0.2, 1.0]], device=device))


def test_images_that_do_not_fit() -> None:
    images, labels = torch.zeros(3, 28, 28, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"labels: expected \(3,\), one an image, got \(2,\)"):
        Images(images, labels[:2], (), "")
    with pytest.raises(ValueError, match=r"images: expected \(N, \.\.\.\) torch\.uint8"):
        Images(images.float(), labels, (), "")
