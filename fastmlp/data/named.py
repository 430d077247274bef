"""Data sets by name, as the command line takes them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fastmlp.data import idx, tables
from fastmlp.data.errors import DataError
from fastmlp.data.images import Images
from fastmlp.data.samples import Samples
from fastmlp.data.synthetic import synthetic

#: What `named` takes.
NAMES = ("fashion-mnist", "mnist", "kmnist", "digits", "diabetes", "synthetic")


def named(
    name: str, root: Path | str | None = None, say: Callable[[str], object] = print, seed: int = 0
) -> tuple[Images, Images] | tuple[Samples, Samples]:
    """Train and test set: `Images` to classify, `Samples` for regression ("diabetes").

    Fashion-MNIST, MNIST and KMNIST come through torchvision: from ``root``, or downloaded once into
    `idx.cache_directory`. Where Fashion-MNIST is not available and no ``root`` is given, the synthetic set of
    the same shapes takes its place, and ``say`` is told; no other set is ever replaced.

    Args:
        name: one of `NAMES`.
        root: torchvision's: the directory that holds the folder FashionMNIST, MNIST or KMNIST.
        say: called with a message.
        seed: of what is drawn: the synthetic set, and how scikit-learn's sets are split.

    Raises:
        ValueError: an unknown name, or a ``root`` for a set that reads no files.
        DataError: the data is missing or broken, or the library it comes through is; with what to do.
    """
    if name not in NAMES:
        raise ValueError(f"name: expected one of {', '.join(NAMES)}, got {name!r}")
    if name not in idx.SETS:
        if root is not None:
            raise ValueError(f"root: expected None, as {name} reads no files, got {str(root)!r}")
        if name == "diabetes":
            return tables.diabetes(seed)
        return tables.digits(seed) if name == "digits" else synthetic(seed)
    if root is not None:
        return idx.read(name, root)
    try:
        return idx.read(name, idx.cache_directory(), download=True)
    except DataError as error:
        if name != "fashion-mnist":
            raise
        say(f"Fashion-MNIST is not available ({error}). Training on the embedded synthetic set instead.")
        return synthetic(seed)


def load(data: Path | None, say: Callable[[str], object], seed: int = 0) -> tuple[Images, Images]:
    """``named("fashion-mnist", data, say, seed)``."""
    return named("fashion-mnist", data, say, seed)  # type: ignore[return-value]
