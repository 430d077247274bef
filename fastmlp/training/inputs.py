"""Makes a `Source` of what `fit` takes as data: checked, and on the device if it is small enough."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from fastmlp.data import Images, Samples
from fastmlp.training.arrays import Pair, holds_numbers, is_array, kind_of, pair_of, tensors_of
from fastmlp.training.sources import Arrays, Items, Loader, Resident, Source, example_of
from fastmlp.training.specs import dtype_of

#: Features with labels or targets: a set, a pair of tensors or of NumPy arrays, or one of torch's; see `fit`.
Data = Images | Samples | tuple[Any, Any] | Dataset[Any] | DataLoader[Any]

#: Examples per step, by default.
BATCH = 256
#: Arrays and map-style data sets of at most so many bytes are put on the device as a whole.
RESIDENT = 1 << 30
_LOOKS = 4  # at one example, to see whether it stays the same
_PLAIN = (tuple, list, dict, str, bytes)
_CHUNK = 1024  # examples of a data set that are read at a time


def open_source(
    data: Data, name: str, device: torch.device, net: nn.Module, batch_size: int | None = None
) -> Source:
    """``data``, called ``name`` in messages, for ``net`` on ``device``. Nothing is written.

    ``batch_size`` is that of the steps, if it was asked for; a DataLoader has its own.

    Raises:
        ValueError: `fit` does not take it, with what was expected.
    """
    dtype = dtype_of(net)
    if isinstance(data, (DataLoader, IterableDataset)):
        return _loader(data, name, device, dtype, batch_size)
    if isinstance(data, TensorDataset):
        return _arrays(pair_of(data.tensors, name, "tensors"), name, device, dtype)
    if _is_map_style(data):
        return _items(data, name, device, dtype)
    pair = _parts(data)
    if pair is None:
        inside = ""
        if isinstance(data, (tuple, list)) and data:
            inside = f" with {' and '.join(map(kind_of, data[:2]))}"
        raise ValueError(
            f"{name}: expected Images, Samples, a pair (x, y) of tensors or of NumPy arrays, a Dataset or a "
            f"DataLoader, got {kind_of(data)}{inside}"
        )
    if all(isinstance(part, Tensor) for part in pair):
        return Resident(name, device, tensors_of(pair, name))
    return _arrays(pair, name, device, dtype)


def _parts(data: Any) -> tuple[Any, Any] | None:
    """Features and targets, if ``data`` holds both as a whole."""
    if isinstance(data, Images):
        return data.images.flatten(1), data.labels
    if isinstance(data, Samples):
        return data.x, data.y
    if isinstance(data, (tuple, list)) and len(data) == 2 and all(map(holds_numbers, data)):
        return data[0], data[1]
    return None


def _is_map_style(data: Any) -> bool:
    """Whether ``data`` may be a data set of pairs; a table by itself is not."""
    if isinstance(data, (Images, Samples, Tensor, *_PLAIN)):
        return False
    if is_array(data):
        return bool(data.dtype.hasobject)  # it may hold pairs; an array of numbers is half of one
    return hasattr(data, "__getitem__") and hasattr(data, "__len__") and not holds_numbers(data)


def _loader(data: Any, name: str, device: torch.device, dtype: torch.dtype, asked: int | None) -> Loader:
    """A DataLoader, which has a batch size of its own, or an iterable data set."""
    if isinstance(data, IterableDataset):
        data = DataLoader(data, batch_size=asked or BATCH)
    elif asked is not None and asked != data.batch_size:
        raise ValueError(f"batch_size: expected None, as the DataLoader has {data.batch_size}, got {asked}")
    return Loader(name, device, data, dtype)


def _arrays(pair: tuple[Any, Any], name: str, device: torch.device, dtype: torch.dtype) -> Resident | Arrays:
    """Arrays and tensors on the host, on the device if they are small."""
    x, y = tensors_of(pair, name)  # labels are checked as a whole, and kept
    if x.nbytes + y.nbytes <= RESIDENT or not x.is_cpu:
        return Resident(name, device, (x, y), dtype)
    maps = [part._mmap for part in pair if _is_shared_map(part)]
    return Arrays(name, device, (x, y), dtype, maps)


def _items(data: Any, name: str, device: torch.device, dtype: torch.dtype) -> Resident | Items:
    """A map-style data set: read into memory once, if it is small and its examples stay as they are."""
    count = len(data)  # once: what is added meanwhile does not belong to it
    if count == 0:
        raise ValueError(f"{name}: expected at least one example, got none from {kind_of(data)}")
    with torch.random.fork_rng(devices=[]):  # reading an example may draw random numbers
        looks = [pair_of(example_of(data, 0, name, count), name, "examples") for _ in range(_LOOKS)]
    x, y = looks[0]
    if not isinstance(x, Tensor) and not is_array(x):
        raise ValueError(
            f"{name}: expected examples whose features are a tensor or an array, got {kind_of(x)}"
            + ("; torchvision.transforms.ToTensor() makes one of it" if "PIL" in kind_of(x) else "")
        )
    if not isinstance(y, (Tensor, int, float, list, tuple)) and not hasattr(y, "dtype"):
        raise ValueError(
            f"{name}: expected examples whose target is a number, a tensor or an array, got {kind_of(y)}"
        )
    size = _on_host(x).nbytes + _on_host(y).nbytes
    fixed = all(torch.equal(_on_host(a), _on_host(b)) for look in looks[1:] for a, b in zip(looks[0], look))
    items = Items(name, device, data, dtype, count, fixed)
    if not fixed or count * size > RESIDENT:
        return items
    return Resident(name, device, _whole(items, dtype))


def _whole(items: Items, dtype: torch.dtype) -> Pair:
    """All examples, in memory."""
    whole: list[Tensor] = []
    done = 0
    for batch in items.read(_CHUNK):
        parts = [t.to(dtype) if t.is_floating_point() else t for t in batch]
        whole = whole or [
            torch.empty(items.count, *part.shape[1:], dtype=part.dtype, device="cpu") for part in parts
        ]
        for everything, part in zip(whole, parts):
            if (part.shape[1:], part.dtype) != (everything.shape[1:], everything.dtype):
                kinds = " and ".join(f"{tuple(t.shape[1:])} {t.dtype}" for t in (everything, part))
                raise ValueError(f"{items.name}: expected examples of one shape and dtype, got {kinds}")
            everything[done : done + len(part)] = part
        done += len(parts[0])
    x, y = whole
    return x, y


def _is_shared_map(value: Any) -> bool:
    """Whether pages of the file behind ``value`` can be given back: what was written to them is not lost."""
    return getattr(value, "_mmap", None) is not None and value.mode != "c"


def _on_host(value: Any) -> Tensor:
    """A tensor as it is; a number or an array on the CPU, whatever the default device."""
    return value if isinstance(value, Tensor) else torch.as_tensor(value, device="cpu")
