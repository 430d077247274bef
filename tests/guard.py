"""An address sanitizer for launches: every argument of a kernel in the middle of poisoned memory.

Inside ``with guarded():`` each launch gets copies of its tensors. A copy keeps its layout and alignment, and
lies in a buffer of its own, whose margins, and the gaps between the elements of a layout that has some, hold
poison: NaN, or integers that are no sensible index. Tensors that overlap share a buffer. After the launch the
poison must be there bit for bit, and the elements are copied back. What is read from outside is poison, so
that the results go wrong; in the interpreter, which loads by address, such a load raises besides.

The training engine's kernels find their tensors by a table of addresses (`layer_table.Table`):
these are arguments too, and the kernel is given a table of the copies' addresses. The padding of such
a buffer's rows is poison as well, which a kernel may load but neither keep nor let into a result.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from fastmlp.kernels import launch as door
from fastmlp.kernels.launch import INTERPRETED, Launch
from fastmlp.kernels.training.layer_table import ALIGNMENT, LayerMemory, Table

#: Bytes before and after: more than a row of the largest tile in the tests.
MARGIN = 4096
#: Copies lie at the same address as the originals modulo this, so that kernels see the same alignment.
_ALIGNMENT = 256
#: A quiet NaN of each width for floats; for integers 0x5A in every byte: no index, no address, no count.
_POISON = {torch.float16: 0x7E5A, torch.bfloat16: 0x7FDA, torch.float32: 0x7FDA5A5A}
_POISON[torch.float64] = 0x7FFA5A5A5A5A5A5A
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class OutOfBoundsError(AssertionError):
    """A kernel touched memory that none of its arguments is."""


class Region:
    """One buffer, for tensors of one storage whose ranges of memory overlap."""

    def __init__(self, tensors: list[Tensor]) -> None:
        first = tensors[0]
        storage, device = first.untyped_storage(), first.device
        self.begin, self.end = min(_span(t)[0] for t in tensors), max(_span(t)[1] for t in tensors)
        size = self.end - self.begin

        def memory(length: int) -> Tensor:
            return torch.empty(length, dtype=torch.uint8, device=device)

        self._whole = memory(size + 2 * MARGIN + 2 * _ALIGNMENT)
        start = MARGIN + (storage.data_ptr() + self.begin - self._whole.data_ptr() - MARGIN) % _ALIGNMENT
        self.start = start
        self._poison = memory(len(self._whole))
        _fill(self._poison, first.dtype)
        self._whole.copy_(self._poison)
        #: All bits of the bytes that are some tensor's element; none of the others'.
        self._covered = torch.zeros_like(self._whole)
        self.name = f"{first.dtype} {tuple(first.shape)}"
        self._original = torch.empty(0, dtype=torch.uint8, device=device).set_(storage, self.begin, (size,))
        for tensor in tensors:
            view = self._view(self._covered, tensor, _INTEGERS[tensor.dtype.itemsize])
            view.fill_(255 if view.dtype == torch.uint8 else -1)
        self._inner = slice(start, start + size)
        inside = self._covered[self._inner] != 0
        self._whole[self._inner] = torch.where(inside, self._original, self._whole[self._inner])
        self.address = self._whole.data_ptr()
        self._bytes = self._covered.numpy() != 0 if device.type == "cpu" else None

    def of(self, tensor: Tensor) -> Tensor:
        """The copy of one of the tensors."""
        return self._view(self._whole, tensor, tensor.dtype)

    def _view(self, memory: Tensor, tensor: Tensor, dtype: torch.dtype) -> Tensor:
        offset = self.start + _span(tensor)[0] - self.begin
        view = torch.empty(0, dtype=dtype, device=memory.device)
        return view.set_(memory.untyped_storage(), offset // dtype.itemsize, tensor.shape, tensor.stride())

    def check(self, kernel: str) -> None:
        """Raise if a byte of the poison is another one."""
        wrong = ((self._whole ^ self._poison) & ~self._covered).nonzero().flatten()
        if len(wrong):
            at = int(wrong[0]) - self.start
            size = self.end - self.begin
            where = (
                f"{-at} bytes before"
                if at < 0
                else f"{at - size} bytes behind"
                if at >= size
                else "in a gap of"
            )
            raise OutOfBoundsError(f"{kernel} wrote {where} an argument, {self.name}")

    def copy_back(self) -> None:
        """What the kernel wrote to the elements, to the tensors that it was meant for."""
        inside = self._covered[self._inner] != 0
        self._original.copy_(torch.where(inside, self._whole[self._inner], self._original))

    def holds(self, addresses: Any) -> Any:
        """Which of the addresses, a NumPy array, are those of a tensor's bytes."""
        assert self._bytes is not None
        at = addresses.astype(np.int64) - self.address
        known = (at >= 0) & (at < len(self._bytes))
        return known & self._bytes[np.where(known, at, 0)]


@contextmanager
def guarded() -> Iterator[list[Launch]]:
    """Every launch inside is checked; a list of them."""
    tables: dict[int, Table] = {}
    launches: list[Launch] = []
    make = Table.__init__

    def made(self: Table, *args: Any, **kwargs: Any) -> None:
        make(self, *args, **kwargs)
        tables[self.rows.data_ptr()] = self

    @contextmanager
    def around(launch: Launch) -> Iterator[tuple[Any, ...]]:
        launches.append(launch)
        with torch.no_grad(), _quiet():
            known = [tables[t.data_ptr()] for t in tensors_of(launch.args) if t.data_ptr() in tables]
            found = [t for table in known for layer in table.layers for t in _tensors_of_layer(layer)]
            regions = _regions([*tensors_of(launch.args), *found])
            copies = {_key(t): r.of(t) for r, tensors in regions for t in tensors}
            padded: list[Tensor] = []
            for table in known:
                moved = [_replaced(layer, copies) for layer in table.layers]
                padded += [
                    _with_padding(t) for m in moved for t in (m.x, m.y, m.saved, m.dz) if t is not None
                ]
                firsts = table.rows[:, 0].tolist()
                rows = torch.tensor([layer.row(first) for layer, first in zip(moved, firsts)])
                copies[_key(table.rows)].copy_(rows)
            args = tuple(_with(a, copies) for a in launch.args)
            before = [copies[_key(table.rows)].clone() for table in known]
        with _checked_accesses(launch.name, [r for r, _ in regions], padded):
            yield args
        with torch.no_grad(), _quiet():
            for table, rows in zip(known, before):
                if not torch.equal(copies[_key(table.rows)], rows):
                    raise OutOfBoundsError(f"{launch.name} wrote to the table of addresses")
                copies[_key(table.rows)].copy_(table.rows)
            for region, _ in regions:
                region.check(launch.name)
            for region, _ in regions:
                region.copy_back()

    with mock.patch.object(Table, "__init__", made), door.around(around):
        yield launches


def tensors_of(value: Any) -> Iterable[Tensor]:
    """The tensors in a launch's arguments: themselves, in tuples, behind descriptors."""
    if isinstance(value, Tensor):
        if value.numel():
            yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from tensors_of(item)
    elif hasattr(value, "base") and isinstance(value.base, Tensor):
        yield value.base


def _with(value: Any, copies: dict[Any, Tensor]) -> Any:
    if isinstance(value, Tensor):
        return copies.get(_key(value), value)
    if isinstance(value, tuple | list):
        items = [_with(item, copies) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if hasattr(value, "base") and isinstance(value.base, Tensor):
        return dataclasses.replace(value, base=_with(value.base, copies))
    return value


def _tensors_of_layer(layer: LayerMemory) -> Iterable[Tensor]:
    for field in dataclasses.fields(layer):
        yield from tensors_of(getattr(layer, field.name))


def _replaced(layer: LayerMemory, copies: dict[Any, Tensor]) -> LayerMemory:
    fields = {f.name: getattr(layer, f.name) for f in dataclasses.fields(layer)}
    return LayerMemory(**{name: _with(value, copies) for name, value in fields.items()})


def _with_padding(buffer: Tensor) -> Tensor:
    """A layer's buffer to the end of its padded rows; behind the last one is poison too."""
    rows, features = buffer.shape
    return buffer.as_strided((rows, -(-features // ALIGNMENT) * ALIGNMENT), buffer.stride())


def _holds(matrix: Tensor, addresses: Any) -> Any:
    """Which of the addresses, a NumPy array, are those of the matrix, whose rows are contiguous."""
    (rows, columns), each = matrix.shape, matrix.element_size()
    row, column = np.divmod(addresses.astype(np.int64) - matrix.data_ptr(), matrix.stride(0) * each)
    return (row >= 0) & (row < rows) & (column < columns * each)


def _key(tensor: Tensor) -> Any:
    return tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()


def _span(tensor: Tensor) -> tuple[int, int]:
    """The bytes of the storage from the tensor's first element to behind its last."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride()))
    begin, each = tensor.storage_offset(), tensor.dtype.itemsize
    return begin * each, (begin + last + 1) * each


def _regions(tensors: Iterable[Tensor]) -> list[tuple[Region, list[Tensor]]]:
    """A region for each group of tensors that overlap."""
    groups: list[tuple[int, int, list[Tensor]]] = []  # of addresses
    for tensor in sorted(tensors, key=lambda t: t.data_ptr()):
        length = _span(tensor)[1] - _span(tensor)[0]
        begin, end = tensor.data_ptr(), tensor.data_ptr() + length
        if groups and begin < groups[-1][1]:
            before = groups.pop()
            groups.append((before[0], max(before[1], end), [*before[2], tensor]))
        else:
            groups.append((begin, end, [tensor]))
    return [(Region(group), group) for _, _, group in groups]


def _fill(memory: Tensor, dtype: torch.dtype) -> None:
    """Poison for elements of ``dtype``, which start at multiples of their size."""
    each = dtype.itemsize
    count = len(memory) // each
    integer = _INTEGERS[each]
    pattern = _POISON.get(dtype, int.from_bytes(b"\x5a" * each, "little"))
    memory[: count * each].view(integer).fill_(pattern)
    memory[count * each :].fill_(0x5A)


@contextmanager
def _quiet() -> Iterator[None]:
    """The guard's own work is nobody's business: no modes, no patched allocators' poison."""
    with ExitStack() as stack:
        stack.enter_context(torch._C._DisableTorchDispatch())
        yield


@contextmanager
def _checked_accesses(kernel: str, regions: list[Region], padded: list[Tensor]) -> Iterator[None]:
    """In the interpreter a load or a store outside of the regions' tensors raises at once.

    What is ``padded`` may be loaded besides.
    """
    if not INTERPRETED:
        yield
        return
    from triton.runtime.interpreter import InterpreterBuilder

    found: list[str] = []

    def checked(do: Callable[..., Any], what: str, mask_at: int, besides: list[Tensor]) -> Callable[..., Any]:
        def call(self: Any, ptrs: Any, *rest: Any, **more: Any) -> Any:
            addresses = ptrs.data[np.broadcast_to(np.asarray(rest[mask_at].data) != 0, ptrs.data.shape)]
            ok = np.zeros(addresses.shape, bool)
            for region in regions:
                ok |= region.holds(addresses)
            for matrix in besides:
                ok |= _holds(matrix, addresses)
            if not ok.all():
                found.append(f"{kernel} {what} {(~ok).sum()} elements outside of its arguments")
                raise OutOfBoundsError(found[0])
            return do(self, ptrs, *rest, **more)

        return call

    load, store = InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store
    with (
        mock.patch.object(InterpreterBuilder, "create_masked_load", checked(load, "read", 0, padded)),
        mock.patch.object(InterpreterBuilder, "create_masked_store", checked(store, "wrote", 1, [])),
    ):
        try:
            yield
        except Exception as error:  # the interpreter's, around ours
            if found:
                raise OutOfBoundsError(found[0]) from error
            raise
