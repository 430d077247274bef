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
from fastmlp.training import finite
from fastmlp.training.expected import Expected
from fastmlp.training.identity import digest
from fastmlp.training.pairs import Pair, checked

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
    #: What net and loss take, once it is required.
    expected: Expected | None = None

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
    def require(self, expected: Expected) -> None:
        """Make all examples what net and loss take: now, or each batch as it is read, and now the first.

        Raises:
            ValueError: they do not take them.
        """

    @property
    def has_answers(self) -> bool:
        """Whether each example has one right class."""
        return self.expected is not None and self.expected.targets.are_answers

    def steps(self, size: int) -> int | None:
        """Batches of ``size`` in a pass, or None."""
        return None if self.count is None else -(-self.count // size)

    def facts(self) -> dict[str, str] | None:
        """By what a checkpoint knows the data again; None where the next pass may be another."""
        return None


class Resident(Source):
    """Tensors on the device: x (N, ...), y (N, ...)."""

    def __init__(self, name: str, x: Tensor, y: Tensor, where: Callable[[int], str] = finite.row) -> None:
        super().__init__(name, y.device)
        self.x, self.y, self.count, self._where = x, y, len(y), where

    def example(self) -> Pair:
        """See `Source.example`."""
        return self.x[:1], self.y[:1]

    def batches(self, size: int, order: Tensor | None = None, start: int = 0) -> Iterator[Pair]:
        """See `Source.batches`."""
        return batches(self.x[start * size :], self.y[start * size :], size, order, raw=True)

    def require(self, expected: Expected) -> None:
        """See `Source.require`."""
        self.expected = expected
        self.x, self.y = expected.take(self.x, self.y, self.name, where=self._where)
        self._where = finite.row  # the other may hold what the data were made of

    def facts(self) -> dict[str, str]:
        """See `Source.facts`: all labels, and every so-many-th row of what is floating."""
        return _facts(self.x, self.x[_some(len(self.x))], self.y, self.x.dtype)


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
            yield self._taken(batch, rows)
        self._give_back()

    def _taken(self, batch: Pair, rows: Tensor) -> Pair:
        if self.expected is None:
            return batch
        return self.expected.take(*batch, self.name, self._dtype, partial(_row_of, rows.tolist()))

    def _empty(self, tensor: Tensor, rows: int) -> Tensor:
        """For so many rows, pinned where they go on to a GPU."""
        pinned = self.device.type == "cuda"
        return torch.empty(rows, *tensor.shape[1:], dtype=tensor.dtype, pin_memory=pinned, device="cpu")

    def _give_back(self) -> None:
        """Unmap the pages that were read, else they count as this process' memory. The system keeps them."""
        for pages in self._maps:
            pages.madvise(mmap.MADV_DONTNEED)

    def require(self, expected: Expected) -> None:
        """See `Source.require`: labels are looked at all of them."""
        self.expected = expected
        self.y = expected.targets.shaped(self.y)
        if not self.y.is_floating_point():
            self.y = expected.targets.take(self.y, self.name)
        self.example()

    def facts(self) -> dict[str, str]:
        """See `Source.facts`: the same as of `Resident`."""
        some = self.x[_some(len(self.x))]
        if self.expected is not None:
            some = self.expected.features.cast(some, self.name, self._dtype)
        facts = _facts(self.x, some, self.y, self._dtype)
        self._give_back()
        return facts


class Items(Source):
    """A map-style data set that is too large for the device, or that gives other examples each time.

    Args:
        dataset: of pairs.
        dtype: what floating numbers become.
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
        super().__init__(name, device)
        self._dataset, self._dtype, self._fixed = dataset, dtype, fixed
        self.count: int = count
        self._first: Pair | None = None

    def example(self) -> Pair:
        """See `Source.example`."""
        if self._first is None:  # it may be another when it is read again, or draw from the generator
            some = torch.zeros(1, dtype=torch.int64, device="cpu")
            self._first = next(ahead(self.read(1, some), self.device, self._dtype))
        return self._first

    def batches(self, size: int, order: Tensor | None = None, start: int = 0) -> Iterator[Pair]:
        """See `Source.batches`."""
        return ahead(self.read(size, order, start), self.device, self._dtype)

    def read(self, size: int, order: Tensor | None = None, start: int = 0) -> Iterator[Pair]:
        """`batches`, on the host."""
        order = torch.arange(self.count, device="cpu") if order is None else order
        for part in order.split(size)[start:]:
            rows = part.tolist()
            where = partial(_row_of, rows)
            yield taken(self._batch(rows), self.name, self.expected, self._dtype, where)

    def _batch(self, rows: list[int]) -> Any:
        # Not by a DataLoader: it draws a seed where it needs none, on the default device.
        several = getattr(self._dataset, "__getitems__", None)
        if several is None:
            examples = [example_of(self._dataset, row, self.name, self.count) for row in rows]
        else:
            try:
                examples = several(rows)
            except IndexError as error:
                what = f"one of the examples {rows[0]} to {rows[-1]}"
                raise _missing(self._dataset, what, self.name, self.count, error) from error
        with torch.device("cpu"), _one_shape(self.name):
            return default_collate(examples)

    def require(self, expected: Expected) -> None:
        """See `Source.require`."""
        self.expected = expected
        self._first = expected.take(*self.example(), self.name)

    def facts(self) -> dict[str, str] | None:
        """See `Source.facts`: some examples' content."""
        if not self._fixed:
            return None
        some = torch.arange(0, self.count, max(self.count // _ITEMS, 1), device="cpu")
        ((x, y),) = self.read(len(some), some)
        kind = f"{self.count} of {tuple(x.shape[1:])} {x.dtype} from a {type(self._dataset).__name__}"
        return {"data": kind, "data's content": digest(x, y)}


class Loader(Source):
    """A DataLoader: its batches, in its own order."""

    def __init__(self, name: str, device: torch.device, loader: DataLoader[Any], dtype: torch.dtype) -> None:
        super().__init__(name, device)
        self._loader, self._dtype = loader, dtype
        self._begun: Iterator[Any] | None = None  # a pass of which one batch has been looked at
        self._first: Pair | None = None

    def example(self) -> Pair:
        """See `Source.example`: the first of the first pass, where it will not be missing."""
        if self._first is None:
            passing = self._pass()
            first = next(passing, None)
            if first is None:
                raise ValueError(f"{self.name}: expected at least one example, got none")
            self._begun = chain([first], passing)
            x, y = checked(first, self.name)
            self.size = self._loader.batch_size or len(y)
            self._first = next(ahead(iter([(x[:1], y[:1])]), self.device, self._dtype))
        return self._first

    def batches(self, size: int, order: Tensor | None = None, start: int = 0) -> Iterator[Pair]:
        """See `Source.batches`; ``size`` and ``order`` are the loader's."""
        passing, self._begun = self._begun or self._pass(), None
        return ahead(self._taken(passing), self.device, self._dtype)

    def _pass(self) -> Iterator[Any]:
        with _one_shape(self.name):
            yield from self._loader

    def _taken(self, passing: Iterator[Any]) -> Iterator[Pair]:
        for number, batch in enumerate(passing, 1):
            where = partial("row {1} of batch {0}".format, number)
            yield taken(batch, self.name, self.expected, self._dtype, where)

    def require(self, expected: Expected) -> None:
        """See `Source.require`."""
        self.expected = expected
        self._first = expected.take(*self.example(), self.name)

    def steps(self, size: int) -> int | None:
        """See `Source.steps`."""
        try:
            return len(self._loader)
        except TypeError:  # an iterable data set without a length
            return None


@contextmanager
def _one_shape(name: str) -> Iterator[None]:
    """Say what torch says of examples that make no batch as the other errors are said."""
    try:
        yield
    except RuntimeError as error:
        if "equal size" not in str(error):
            raise
        said = str(error).strip().splitlines()[-1]  # behind the traceback of a worker's process
        raise ValueError(f"{name}: expected examples of one shape ({said})") from error


def example_of(dataset: Any, row: int, name: str, count: int) -> Any:
    """Example ``row`` of a map-style data set, called ``name``, that had ``count`` of them.

    Raises:
        ValueError: it is not there.
    """
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


def taken(
    batch: Any, name: str, expected: Expected | None, dtype: torch.dtype, where: Callable[[int], str]
) -> Pair:
    """A batch that somebody else made as net and loss take it, once it is known what they do.

    Raises:
        ValueError: they do not take it.
    """
    pair = checked(batch, name)
    return pair if expected is None else expected.take(*pair, name, dtype, where)


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


def _row_of(rows: list[int], row: int) -> str:
    """A row of a batch, by what it is in the data."""
    return finite.row(rows[row])


def _some(count: int) -> slice:
    """Rows that count towards a fingerprint."""
    return slice(None, None, max(count // _SAMPLE, 1))


def _facts(x: Tensor, some: Tensor, y: Tensor, dtype: torch.dtype) -> dict[str, str]:
    """Of features x, of which ``some`` rows are looked at."""
    rows = some.to(dtype) if some.is_floating_point() else some
    of_y = y[_some(len(y))].to(dtype) if y.is_floating_point() else y
    return {"data": f"{tuple(x.shape)} {rows.dtype}", "data's content": digest(rows, of_y)}
