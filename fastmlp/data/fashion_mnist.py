"""Fashion-MNIST through torchvision, from files that are there or that it downloads."""

from __future__ import annotations

import math
import os
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import torch

from fastmlp.data.images import Images
from fastmlp.data.synthetic import synthetic

_DOWNLOAD_TIMEOUT = 10.0  # seconds without an answer, before the embedded set takes over
# name: (magic number, bytes of header, items)
_FILES = {
    "train-images-idx3-ubyte": (2051, 16, 60_000 * 784),
    "train-labels-idx1-ubyte": (2049, 8, 60_000),
    "t10k-images-idx3-ubyte": (2051, 16, 10_000 * 784),
    "t10k-labels-idx1-ubyte": (2049, 8, 10_000),
}


class DataError(Exception):
    """Data that is missing, broken or cannot be loaded; the message says what to do."""


def load(data: Path | None, say: Callable[[str], None], seed: int = 0) -> tuple[Images, Images]:
    """Fashion-MNIST; or, said aloud, the synthetic set where it cannot be downloaded.

    Args:
        data: a directory that holds it already; None to download it.
        say: called with the message that the synthetic set takes its place.
        seed: of the synthetic set.

    Raises:
        DataError: ``data`` is given, and what is there is missing or broken.
    """
    if data is not None:
        return fashion_mnist(data)
    try:
        return fashion_mnist(cache_directory(), download=True)
    except DataError as error:
        say(f"Fashion-MNIST is not to be had ({error}). Training on the embedded synthetic set instead.")
        return synthetic(seed)


def cache_directory() -> Path:
    """Where downloads go: ``FASTMLP_DATA``, by default ``~/.cache/fastmlp/data``."""
    return Path(os.environ.get("FASTMLP_DATA") or Path.home() / ".cache" / "fastmlp" / "data")


def fashion_mnist(root: Path | str, download: bool = False) -> tuple[Images, Images]:
    """Train and test set from ``root``/FashionMNIST/raw.

    Source: ``torchvision.datasets.FashionMNIST``, whose ``root`` this is.

    Args:
        root: the directory that holds or receives the folder FashionMNIST.
        download: fetch what is missing.

    Raises:
        DataError: torchvision is missing, nothing can be downloaded, or a file is absent, ragged or
            truncated.
    """
    root = Path(root)
    dataset = _dataset_class()
    if download and not all((_raw(root) / name).exists() for name in _FILES):
        try:
            with _timeout(_DOWNLOAD_TIMEOUT), open(os.devnull, "w") as quiet, redirect_stdout(quiet):
                dataset(root, download=True)
        except Exception as error:  # urllib's and torchvision's many ways to say no
            raise DataError(f"the download failed: {str(error).splitlines()[-1].strip()}") from error
    for name in _FILES:
        _validate(_raw(root) / name)
    train, test = (dataset(root, train=train) for train in (True, False))
    return _images(train), _images(test)


def _images(dataset: Any) -> Images:
    labels = dataset.targets.to(torch.int64)
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(dataset.classes):
        raise DataError(f"{dataset.raw_folder}: labels reach {int(labels.max())}, expected 0 to 9")
    return Images(dataset.data, labels, tuple(dataset.classes), "Fashion-MNIST")


def _dataset_class() -> Any:
    try:
        from torchvision.datasets import FashionMNIST
    except (ImportError, OSError, RuntimeError) as error:  # beside a CPU-only torch it fails as it loads
        raise DataError(
            f"torchvision cannot be imported ({error}); install it with `pip install torch torchvision`, "
            "both from the same index"
        ) from error
    return FashionMNIST


def _raw(root: Path) -> Path:
    return root / "FashionMNIST" / "raw"


def _validate(path: Path) -> None:
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
    if promised != header + items:
        raise DataError(f"{path}: expected {items} items of Fashion-MNIST, got {tuple(shape)}")


@contextmanager
def _timeout(seconds: float) -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
