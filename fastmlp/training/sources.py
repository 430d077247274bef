"""Where a run's examples are: on the device, or on the host, from where batches are sent ahead."""

from __future__ import annotations

import mmap
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from fastmlp.data import batches
from fastmlp.training import nonfinite
from fastmlp.training.arrays import Pair, batch_of
from fastmlp.training.identity import digest
from fastmlp.training.nonfinite import Origin
from fastmlp.training.specs import DataSpec

_SAMPLE = 1024  # rows of the features that count towards the data's fingerprint
_ITEMS = 64  # and examples of a data set that computes them
_AROUND = 1 << 16  # bytes that Linux maps around the row that is read of a file
_MAPPED = 256 << 20  # bytes of a file that may stay mapped


class Source(ABC):
    """Examples to train on or to test, by batches on the device.

    Args:
        name: "train" or "test", for messages.
        device: where the net is.
        dtype: what floating numbers become there; None for as they are.
    """

    #: How many examples there are; None if that is not known before the end.
    count: int | None = None
    #: Examples of a batch; None if the caller may choose.
    size: int | None = None
    #: What net and loss take, once it is required.
    spec: DataSpec | None = None

    def __init__(self, name: str, device: torch.device, dtype: torch.dtype | None) -> None:
        self.name, self.device, self.origin = name, device, Origin(name, dtype)

    @abstractmethod
    def example(self) -> Pair:
        """One, as a batch on the device."""

    @abstractmethod
    def batches(self, size: int, order: Tensor | None = None, start: int = 0) -> Iterator[Pair]:
        """One pass, from batch ``start`` on; pixels stay uint8.

        Args:
            size: of a batch; the last may be shorter.
            order: (N,) indices on the CPU; None for the data's own order.
            start: how many batches are skipped.
        """

    @abstractmethod
    def require(self, spec: DataSpec) -> None:
        """Make all examples what net and loss take, or raise a ValueError.

        At once, or each batch as it is read, and the first one at once.
        """

    @property
    def has_answers(self) -> bool:
        """Whether each example has one right class."""
        return self.spec is not None and self.spec.targets.are_answers

    def steps(self, size: int) -> int | None:
        """Batches of ``size`` in a pass, or None."""
        return None if self.count is None else -(-self.count // size)

    def facts(self) -> dict[str, str] | None:
        """What a checkpoint recognises the data by; None if the next pass may be another."""
        return None


class Resident(Source):
    """Tensors on the device: x (N, ...), y (N, ...)."""

    def __init__(self, name: str, device: torch.device, pair: Pair, dtype: torch.dtype | None = None) -> None:
        super().__init__(name, device, dtype)
        self.x, self.y = (t.to(device) for t in pair)
        self.count = len(self.y)

    def example(self) -> Pair:
        """See `Source.example`."""
        return _cast((self.x[:1], self.y[:1]), self.device, self.origin.dtype)

    def batches(self, size: int, order: Tensor | None = None, start: int = 0) -> Iterator[Pair]:
        """See `Source.batches`."""
        return batches(self.x[start * size :], self.y[start * size :], size, order, raw=True)

    def require(self, spec: DataSpec) -> None:
        """See `Source.require`."""
        self.spec = spec
        self.x, self.y = _cast(spec.accept(self.x, self.y, self.origin), self.device, self.origin.dtype)

    def facts(self) -> dict[str, str]:
        """See `Source.facts`: all labels, and some rows of features and of floating targets."""
        return _facts(self.x, self.x[_some(len(self.x))], self.y, self.x.dtype)


class Streamed(Source):
    """Batches that are made on the host, each sent to the device while the one before is worked on."""

    _first: Pair | None = None

    @abstractmethod
    def read(self, size: int, order: Tensor | None = None, start: int = 0) -> Iterator[Pair]:
        """`batches`, on the host."""

    def batches(self, size: int, order: Tensor | None = None, start: int = 0) -> Iterator[Pair]:
        """See `Source.batches`."""
        return prefetched(self.read(size, order, start), self.device, self.origin.dtype)

    def example(self) -> Pair:
        """See `Source.example`: kept, as reading it again may give another one or draw from a generator."""
        if self._first is None:
            self._first = next(prefetched(self._begin(), self.device, self.origin.dtype))
        return self._first

    def require(self, spec: DataSpec) -> None:
        """See `Source.require`."""
        self.spec = spec
        self._first = spec.accept(*self.example(), Origin(self.name))

    def _begin(self) -> Iterator[Pair]:
        """A batch of one example."""
        return self.read(1, torch.zeros(1, dtype=torch.int64, device="cpu"))

    def _accepted(self, batch: Any, where: Callable[[int], str]) -> Pair:
        """A batch as net and loss take it, once that is known; or a ValueError."""
        pair = batch_of(batch, self.name)
        return pair if self.spec is None else self.spec.accept(*pair, self.origin._replace(where=where))


class Indexed(Streamed):
    """Examples that are read by their number."""

    count: int

    def read(self, size: int, order: Tensor | None = None, start: int = 0) -> Iterator[Pair]:
        """See `Streamed.read`."""
        for begin in range(start * size, self.count if order is None else len(order), size):
            end = min(begin + size, self.count)
            rows = torch.arange(begin, end, device="cpu") if order is None else order[begin : begin + size]
            yield self._accepted(self._gathered(rows), partial(_row_of, rows.tolist()))

    @abstractmethod
    def _gathered(self, rows: Tensor) -> Any:
        """The batch of those ``rows``."""


class Arrays(Indexed):
    """Tensors on the host, such as mapped files that are larger than memory: rows are gathered by index.

    Gathering sorted rows, to read a file forwards, gained nothing: a batch of 256 rows of 784 float32 out of
    1.2 GB took 0.23 ms either way with the file in the page cache, and 8 ms from the disk.

    Args:
        pair: x and y, of the same length.
        maps: the files behind x and y, to give back pages that were read.
    """

    def __init__(
        self, name: str, device: torch.device, pair: Pair, dtype: torch.dtype, maps: list[mmap.mmap]
    ) -> None:
        super().__init__(name, device, dtype)
        self.x, self.y = pair
        self.count, self._maps, self._mapped = len(self.y), maps, 0
        row = sum(t[0].numel() * t.element_size() + _AROUND for t in pair)
        self._most = max(1, _MAPPED // row)  # rows that may be mapped, of one batch or of several

    def read(self, size: int, order: Tensor | None = None, start: int = 0) -> Iterator[Pair]:
        """See `Streamed.read`."""
        yield from super().read(size, order, start)
        self._give_back()

    def _gathered(self, rows: Tensor) -> Pair:
        pinned = self.device.type == "cuda"  # where they go on to a GPU
        x, y = (
            torch.empty(len(rows), *t.shape[1:], dtype=t.dtype, pin_memory=pinned, device="cpu")
            for t in (self.x, self.y)
        )
        done = 0
        while done < len(rows):
            if self._mapped == self._most:
                self._give_back()
            part = slice(done, done + self._most - self._mapped)
            torch.index_select(self.x, 0, rows[part], out=x[part])
            torch.index_select(self.y, 0, rows[part], out=y[part])
            self._mapped += len(rows[part])
            done += len(rows[part])
        return x, y

    def _give_back(self) -> None:
        """Unmap the pages that were read, or they count as this process's memory. The system keeps them."""
        self._mapped = 0
        for pages in self._maps:
            pages.madvise(mmap.MADV_DONTNEED)

    def require(self, spec: DataSpec) -> None:
        """See `Source.require`: all labels are checked at once."""
        self.y = spec.targets.shaped(self.y)
        if not self.y.is_floating_point():
            self.y = spec.targets.accept(self.y, Origin(self.name))
        self.spec, self._first = spec, None
        self.example()

    def facts(self) -> dict[str, str]:
        """See `Source.facts`: the same as `Resident`'s."""
        some = self.x[_some(len(self.x))]
        if self.spec is not None:
            some = self.spec.features.cast(some, self.origin)
        assert self.origin.dtype is not None
        facts = _facts(self.x, some, self.y, self.origin.dtype)
        self._give_back()
        return facts


class Items(Indexed):
    """A map-style data set that is too large for the device, or that gives other examples each time.

    Args:
        dataset: of pairs.
        count: its length when it was first looked at.
        fixed: whether an example is the same whenever it is read.
    """

    def __init__(
        self,
        name: str,
        device: torch.device,
        dataset: Dataset[Any],
        dtype: torch.dtype,
        count: int,
        fixed: bool,
    ) -> None:
        super().__init__(name, device, dtype)
        self._dataset, self.count, self._fixed = dataset, count, fixed

    def _gathered(self, rows: Tensor) -> Any:
        # Not by a DataLoader: it draws a seed where it needs none, on the default device.
        numbers = rows.tolist()
        several = getattr(self._dataset, "__getitems__", None)
        if several is None:
            examples = [example_of(self._dataset, row, self.name, self.count) for row in numbers]
        else:
            try:
                examples = several(numbers)
            except IndexError as error:
                what = f"one of the examples {numbers[0]} to {numbers[-1]}"
                raise _missing(self._dataset, what, self.name, self.count, error) from error
        with torch.device("cpu"), _one_shape(self.name):
            return default_collate(examples)

    def facts(self) -> dict[str, str] | None:
        """See `Source.facts`: some examples' content."""
        if not self._fixed:
            return None
        some = torch.arange(0, self.count, max(self.count // _ITEMS, 1), device="cpu")
        ((x, y),) = self.read(len(some), some)
        kind = f"{self.count} of {tuple(x.shape[1:])} {x.dtype} from a {type(self._dataset).__name__}"
        return {"data": kind, "data's content": digest(x, y)}


class Loader(Streamed):
    """A DataLoader: its batches, in its own order."""

    def __init__(self, name: str, device: torch.device, loader: DataLoader[Any], dtype: torch.dtype) -> None:
        super().__init__(name, device, dtype)
        self._loader = loader
        self._begun: Iterator[Any] | None = None  # a pass of which one batch has been looked at

    def _begin(self) -> Iterator[Pair]:
        """The first example of the first pass, which will still have it."""
        passing = self._pass()
        first = next(passing, None)
        if first is None:
            raise ValueError(f"{self.name}: expected at least one example, got none")
        self._begun = chain([first], passing)
        x, y = batch_of(first, self.name)
        self.size = self._loader.batch_size or len(y)
        return iter([(x[:1], y[:1])])

    def read(self, size: int, order: Tensor | None = None, start: int = 0) -> Iterator[Pair]:
        """See `Streamed.read`; ``size`` and ``order`` are the loader's."""
        passing, self._begun = self._begun or self._pass(), None
        for number, batch in enumerate(passing, 1):
            yield self._accepted(batch, partial("row {1} of batch {0}".format, number))

    def _pass(self) -> Iterator[Any]:
        with _one_shape(self.name):
            yield from self._loader

    def steps(self, size: int) -> int | None:
        """See `Source.steps`."""
        try:
            return len(self._loader)
        except TypeError:  # an iterable data set without a length
            return None


@contextmanager
def _one_shape(name: str) -> Iterator[None]:
    """Word torch's error about examples that make no batch like the others."""
    try:
        yield
    except RuntimeError as error:
        if "equal size" not in str(error):
            raise
        said = str(error).strip().splitlines()[-1]  # after the traceback of a worker's process
        raise ValueError(f"{name}: expected examples of one shape ({said})") from error


def example_of(dataset: Any, row: int, name: str, count: int) -> Any:
    """Example ``row`` of the map-style data set ``name`` that had ``count`` of them; or a ValueError."""
    try:
        return dataset[row]
    except IndexError as error:
        raise _missing(dataset, f"example {row}", name, count, error) from error


def _missing(dataset: Any, what: str, name: str, count: int, error: IndexError) -> ValueError:
    now = len(dataset)
    if now < count:
        return ValueError(f"{name}: its length was {count}, and now it is {now}")
    said = f" ({error})" if str(error) else ""
    return ValueError(f"{name}: its length is {count}, but {what} is not there{said}")


def prefetched(pairs: Iterator[Pair], device: torch.device, dtype: torch.dtype | None) -> Iterator[Pair]:
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
            yield _cast(tensors, device, dtype)
        waiting = sent


def _cast(pair: Iterable[Tensor], device: torch.device, dtype: torch.dtype | None) -> Pair:
    x, y = (t.to(device, dtype if t.is_floating_point() else None) for t in pair)
    return x, y


def _row_of(rows: list[int], row: int) -> str:
    """A row of a batch, by its number in the data."""
    return nonfinite.row(rows[row])


def _some(count: int) -> slice:
    """Rows that count towards a fingerprint."""
    return slice(None, None, max(count // _SAMPLE, 1))


def _facts(x: Tensor, some: Tensor, y: Tensor, dtype: torch.dtype) -> dict[str, str]:
    """The facts of targets y and of features x, by ``some`` of their rows."""
    rows = some.to(dtype) if some.is_floating_point() else some
    of_y = y[_some(len(y))].to(dtype) if y.is_floating_point() else y
    return {"data": f"{tuple(x.shape)} {rows.dtype}", "data's content": digest(rows, of_y)}
