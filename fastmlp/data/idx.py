"""Fashion-MNIST, MNIST and KMNIST through torchvision: files that are there, or that it downloads."""

from __future__ import annotations

import importlib
import math
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import torch

from fastmlp.data.errors import DataError
from fastmlp.data.images import Images

#: By name: torchvision's class, which is also the folder, and what people call it.
SETS = {
    "fashion-mnist": ("FashionMNIST", "Fashion-MNIST"),
    "mnist": ("MNIST", "MNIST"),
    "kmnist": ("KMNIST", "KMNIST"),
}
_DOWNLOAD_TIMEOUT = 10.0  # seconds without an answer
# Of each of the sets; name: (magic number, bytes of header, items)
_FILES = {
    "train-images-idx3-ubyte": (2051, 16, 60_000 * 784),
    "train-labels-idx1-ubyte": (2049, 8, 60_000),
    "t10k-images-idx3-ubyte": (2051, 16, 10_000 * 784),
    "t10k-labels-idx1-ubyte": (2049, 8, 10_000),
}


def cache_directory() -> Path:
    """Where downloads go: ``FASTMLP_DATA``, by default ``~/.cache/fastmlp/data``."""
    return Path(os.environ.get("FASTMLP_DATA") or Path.home() / ".cache" / "fastmlp" / "data")


def fashion_mnist(root: Path | str, download: bool = False) -> tuple[Images, Images]:
    """`read` of "fashion-mnist"."""
    return read("fashion-mnist", root, download)


def read(name: str, root: Path | str, download: bool = False) -> tuple[Images, Images]:
    """Train and test set from ``root``/FashionMNIST/raw, ``root``/MNIST/raw or ``root``/KMNIST/raw.

    Source: ``torchvision.datasets``, whose ``root`` this is.

    Args:
        name: one of `SETS`.
        root: the directory that holds or receives the set's folder.
        download: fetch what is missing.

    Raises:
        DataError: torchvision is missing, nothing can be downloaded, or a file is absent, ragged or
            truncated.
    """
    folder, title = SETS[name]
    raw = Path(root) / folder / "raw"
    dataset = _dataset_class(folder)
    if download and not all((raw / file).exists() for file in _FILES):
        try:
            with _timeout(_DOWNLOAD_TIMEOUT), open(os.devnull, "w") as quiet, redirect_stdout(quiet):
                dataset(Path(root), download=True)
        except Exception as error:  # urllib's and torchvision's many ways to say no
            reason = (str(error) or type(error).__name__).splitlines()[-1].strip()
            raise DataError(
                f"the download of {title} failed: {reason}; on a machine without a network, put its four "
                f"files, unpacked, into {raw}"
            ) from error
    for file in _FILES:
        _validate(raw / file, title)
    train, test = (_images(dataset(Path(root), train=train), title) for train in (True, False))
    return train, test


def _images(dataset: Any, title: str) -> Images:
    labels = dataset.targets.to(torch.int64)
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(dataset.classes):
        raise DataError(f"{dataset.raw_folder}: labels reach {int(labels.max())}, expected 0 to 9")
    return Images(dataset.data, labels, tuple(dataset.classes), title)


def _dataset_class(name: str) -> Any:
    try:
        return getattr(importlib.import_module("torchvision.datasets"), name)
    except (ImportError, OSError, RuntimeError) as error:  # beside a CPU-only torch it fails as it loads
        raise DataError(f"torchvision cannot be imported ({error}); {_remedy()}") from error


def _remedy() -> str:
    """What to install: the torchvision of another index than torch's own does not load beside it."""
    if torch.version.cuda is None and getattr(torch.version, "hip", None) is None:
        return (
            f"beside this CPU-only torch {torch.__version__} install its own: `pip install --force-reinstall "
            "--no-deps torchvision --index-url https://download.pytorch.org/whl/cpu`"
        )
    return "install it with `pip install torch torchvision`, both from the same index"


def _validate(path: Path, title: str) -> None:
    """Check an IDX file's header and length, which torchvision takes on trust."""
    magic, header, items = _FILES[path.name]
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(header)
    except OSError as error:
        packed = path.with_name(path.name + ".gz")
        hint = f"; unpack {packed}" if packed.exists() else ""
        raise DataError(f"{path}: {error.strerror or error}{hint}") from error
    if len(start) < header:
        raise DataError(f"{path}: expected a header of {header} bytes, got a file of {size}")
    found, *shape = struct.unpack(f">{header // 4}I", start)
    if found != magic:
        raise DataError(f"{path}: expected the IDX magic number {magic}, got {found}")
    promised = header + math.prod(shape)
    if size != promised:
        raise DataError(f"{path}: its header promises {tuple(shape)}, {promised} bytes, but it has {size}")
    expected = (items,) if len(shape) == 1 else (items // 784, 28, 28)
    if tuple(shape) != expected:
        raise DataError(f"{path}: expected {items} items of {title}, {expected}, got {tuple(shape)}")


@contextmanager
def _timeout(seconds: float) -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
