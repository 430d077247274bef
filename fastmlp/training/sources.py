"""Where a run's examples are: on the device, or on the host, from where batches are sent ahead."""

from __future__ import annotations

import mmap
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from fastmlp.data import batches
from fastmlp.training.identity import digest
from fastmlp.training.pairs import Pair, checked
from fastmlp.training.targets import Targets

_SAMPLE = 1024  # rows of the features that count towards the data's fingerprint
_ITEMS = 64  # and examples of a data set that computes them
_AROUND = 1 << 16  # bytes that Linux maps around the row that is read of a file
_MAPPED = 256 << 20  # bytes of a file that may stay mapped


class Source(ABC):
    """Examples to train on or to test, by batches on the device.

    Args:
        name: "train" or "test", for messages.
        device: where the net is.
    """

    #: How many examples there are; None where nobody knows before the end.
    count: int | None = None
    #: Examples of a batch; None where whoever asks may say.
    size: int | None = None

    def __init__(self, name: str, device: torch.device) -> None:
        self.name, self.device = name, device

    @abstractmethod
    def example(self) -> Pair:
        """One, as a batch on the device."""

    @abstractmethod
    def batches(self, size: int, order: Tensor | None = None, start: int = 0) -> Iterator[Pair]:
        """One pass, from batch ``start`` on; pixels stay uint8.

        Args:
            size: of a batch; the last may be shorter.
            order: (N,) indices on the CPU; None for as they stand.
            start: how many batches are left out.
        """

    @abstractmethod
    def require(self, targets: Targets) -> None:
        """See that all labels or targets are such: now, or as each batch is read.

        Raises:
            ValueError: they are not.
        """

    def steps(self, size: int) -> int | None:
        """Batches of ``size`` in a pass, or None."""
        return None if self.count is None else -(-self.count // size)

    def facts(self) -> dict[str, str] | None:
        """By what a checkpoint knows the data again; None where the next pass may be another."""
        return None


class Resident(Source):
    """Tensors on the device: x (N, ...), y (N, ...)."""

    def __init__(self, name: str, x: Tensor, y: Tensor) -> None:
        super().__init__(name, y.device)
        self.x, self.y, self.count = x, y, len(y)

    def example(self) -> Pair:
        """See `Source.example`."""
        return self.x[:1], self.y[:1]

    def batches(self, size: int, order: Tensor | None = None, start: int = 0) -> Iterator[Pair]:
        """See `Source.batches`."""
        return batches(self.x[start * size :], self.y[start * size :], size, order, raw=True)

    def require(self, targets: Targets) -> None:
        """See `Source.require`."""
        targets.check(self.y, self.name)

    def facts(self) -> dict[str, str]:
        """See `Source.facts`: all labels, and every so-many-th row of what is floating."""
        return _facts(self.x, self.y, self.x.dtype)


class Arrays(Source):
    """Tensors on the host, such as mapped files that are larger than memory: rows are gathered by index.

    Gathering sorted rows, to read a file forwards, gained nothing: with the file in the page cache 0.23 ms
    either way a batch of 256 rows of 784 float32 out of 1.2 GB, from the disk 8 ms either way.

    Args:
        x, y: of the same length.
        dtype: what floating numbers become, on the device.
        maps: the files behind x and y, so that pages which were read are given back.
    """

    def __init__(
        self, name: str, device: torch.device, pair: Pair, dtype: torch.dtype, maps: list[mmap.mmap]
    ) -> None:
        super().__init__(name, device)
        self.x, self.y = pair
        self.count, self._dtype, self._maps = len(self.y), dtype, maps

    def example(self) -> Pair:
        """See `Source.example`."""
        return next(self.batches(1))

    def batches(self, size: int, order: Tensor | None = None, start: int = 0) -> Iterator[Pair]:
        """See `Source.batches`."""
        return ahead(self._gathered(size, order, start), self.device, self._dtype)

    def _gathered(self, size: int, order: Tensor | None, start: int) -> Iterator[Pair]:
        row = sum(t[0].numel() * t.element_size() + _AROUND for t in (self.x, self.y))
        most, mapped = max(1, _MAPPED // row), 0  # rows, of one batch or of several
        for begin in range(start * size, len(self.y), size):
            end = min(begin + size, len(self.y))
            rows = torch.arange(begin, end, device="cpu") if order is None else order[begin:end]
            batch, done = (self._empty(self.x, len(rows)), self._empty(self.y, len(rows))), 0
            while done < len(rows):
                if mapped == most:
                    mapped = 0
                    self._give_back()
                part = slice(done, done + most - mapped)
                for tensor, out in zip((self.x, self.y), batch):
                    torch.index_select(tensor, 0, rows[part], out=out[part])
                mapped, done = mapped + len(rows[part]), done + len(rows[part])
            yield batch
        self._give_back()

    def _empty(self, tensor: Tensor, rows: int) -> Tensor:
        """For so many rows, pinned where they go on to a GPU."""
        pinned = self.device.type == "cuda"
        return torch.empty(rows, *tensor.shape[1:], dtype=tensor.dtype, pin_memory=pinned, device="cpu")

    def _give_back(self) -> None:
        """Unmap the pages that were read, else they count as this process' memory. The system keeps them."""
        for pages in self._maps:
            pages.madvise(mmap.MADV_DONTNEED)

    def require(self, targets: Targets) -> None:
        """See `Source.require`."""
        y = self.y
        if y.is_floating_point():  # of these only the kind matters
            y = y[:1].to(self._dtype).expand_as(y)
        targets.check(y, self.name)

    def facts(self) -> dict[str, str]:
        """See `Source.facts`: the same as of `Resident`."""
        facts = _facts(self.x, self.y, self._dtype)
        self._give_back()
        return facts


class Items(Source):
    """A map-style data set that is too large for the device, or that gives other examples each time.

    Args:
        dataset: of pairs.
        dtype: what floating numbers become.
        fixed: whether an example is the same whenever it is read.
    """

    def __init__(
        self, name: str, device: torch.device, dataset: Dataset[Any], dtype: torch.dtype, fixed: bool
    ) -> None:
        super().__init__(name, device)
        self._dataset, self._dtype, self._fixed = dataset, dtype, fixed
        self.count = len(dataset)  # type: ignore[arg-type]
        self._targets: Targets | None = None

    def example(self) -> Pair:
        """See `Source.example`."""
        return next(
            ahead(self.read(1, torch.zeros(1, dtype=torch.int64, device="cpu")), self.device, self._dtype)
        )

    def batches(self, size: int, order: Tensor | None = None, start: int = 0) -> Iterator[Pair]:
        """See `Source.batches`."""
        return ahead(self.read(size, order, start), self.device, self._dtype)

    def read(self, size: int, order: Tensor | None = None, start: int = 0) -> Iterator[Pair]:
        """`batches`, on the host."""
        order = torch.arange(self.count or 0, device="cpu") if order is None else order
        # Not by a DataLoader: it draws a seed where it needs none, on the default device.
        several = getattr(self._dataset, "__getitems__", None)
        for part in order.split(size)[start:]:
            rows = part.tolist()
            examples = [self._dataset[row] for row in rows] if several is None else several(rows)
            with torch.device("cpu"):
                batch = default_collate(examples)
            yield checked(batch, self.name, self._targets)

    def require(self, targets: Targets) -> None:
        """See `Source.require`."""
        self._targets = targets

    def facts(self) -> dict[str, str] | None:
        """See `Source.facts`: some examples' content."""
        if not self._fixed:
            return None
        some = torch.arange(0, self.count or 0, max((self.count or 0) // _ITEMS, 1), device="cpu")
        ((x, y),) = self.read(len(some), some)
        kind = f"{self.count} of {tuple(x.shape[1:])} {x.dtype} from a {type(self._dataset).__name__}"
        return {"data": kind, "data's content": digest(x, y)}


class Loader(Source):
    """A DataLoader: its batches, in its own order."""

    def __init__(self, name: str, device: torch.device, loader: DataLoader[Any], dtype: torch.dtype) -> None:
        super().__init__(name, device)
        self._loader, self._dtype = loader, dtype
        self._targets: Targets | None = None
        self._begun: Iterator[Any] | None = None  # a pass of which one batch has been looked at
        self._first: Pair | None = None

    def example(self) -> Pair:
        """See `Source.example`: the first of the first pass, where it will not be missing."""
        if self._first is None:
            passing = iter(self._loader)
            first = next(passing, None)
            if first is None:
                raise ValueError(f"{self.name}: expected at least one example, got none")
            self._begun = chain([first], passing)
            x, y = checked(first, self.name, None)
            self.size = self._loader.batch_size or len(y)
            self._first = next(ahead(iter([(x[:1], y[:1])]), self.device, self._dtype))
        return self._first

    def batches(self, size: int, order: Tensor | None = None, start: int = 0) -> Iterator[Pair]:
        """See `Source.batches`; ``size`` and ``order`` are the loader's."""
        passing, self._begun = self._begun or iter(self._loader), None
        pairs = (checked(batch, self.name, self._targets) for batch in passing)
        return ahead(pairs, self.device, self._dtype)

    def require(self, targets: Targets) -> None:
        """See `Source.require`."""
        self._targets = targets

    def steps(self, size: int) -> int | None:
        """See `Source.steps`."""
        try:
            return len(self._loader)
        except TypeError:  # an iterable data set without a length
            return None


def ahead(pairs: Iterator[Pair], device: torch.device, dtype: torch.dtype) -> Iterator[Pair]:
    """Host batches on ``device``, floats as ``dtype``; each is copied while the one before is worked on.

    On a GPU: from pinned memory, on a stream of its own, one batch ahead. The allocators of torch keep both
    the pinned and the device's memory until the copy, and then the step, are done with it.
    """
    if device.type != "cuda":
        yield from (_cast(pair, device, dtype) for pair in pairs)
        return
    copies = torch.cuda.Stream(device)
    waiting: tuple[list[Tensor], torch.cuda.Event] | None = None
    for pair in chain[Pair | None](pairs, [None]):
        sent = None
        if pair is not None:
            with torch.cuda.stream(copies):
                pinned = [t.pin_memory() if t.is_cpu else t for t in pair]
                sent = [t.to(device, non_blocking=True) for t in pinned], copies.record_event()
        if waiting is not None:
            tensors, copied = waiting
            here = torch.cuda.current_stream(device)
            here.wait_event(copied)
            for tensor in tensors:
                tensor.record_stream(here)
            yield _cast((tensors[0], tensors[1]), device, dtype)
        waiting = sent


def _cast(pair: Iterable[Tensor], device: torch.device, dtype: torch.dtype) -> Pair:
    x, y = (t.to(device, dtype) if t.is_floating_point() else t.to(device) for t in pair)
    return x, y


def _facts(x: Tensor, y: Tensor, dtype: torch.dtype) -> dict[str, str]:
    some = slice(None, None, max(len(x) // _SAMPLE, 1))
    rows = x[some].to(dtype) if x.is_floating_point() else x[some]
    of_y = y[some].to(dtype) if y.is_floating_point() else y
    return {"data": f"{tuple(x.shape)} {rows.dtype}", "data's content": digest(rows, of_y)}
