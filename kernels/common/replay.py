"""A function's launches, recorded once and made again in microseconds.

A small net on a GPU is bound by its host: what Python decides for a launch (tiles, grids, strides, which
specialization Triton compiled) takes longer than the kernel. All of it follows from the arguments' shapes,
strides, dtypes, devices and alignment. So the first call with a key writes down what it did, as
straight lines of Python: allocations, launches of compiled kernels, torch's ops if there were any. From
the second call on these lines run, with the new arguments' memory in place of the old.

Nothing is recorded if a tensor's values decided something, and every launch goes through
`fastmlp.kernels.launch` as long as somebody observes launches there.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
import triton.language as tl
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from triton.tools.tensor_descriptor import TensorDescriptor

from fastmlp.kernels import launch as door

_aten = torch.ops.aten
_ALLOCATIONS = {
    _aten.empty.memory_format, _aten.empty_strided.default, _aten.empty_like.default,
    _aten.new_empty.default, _aten.new_empty_strided.default,
}  # fmt: skip
#: What Inductor's programs allocate with, on the current device: in half the time of ``torch.empty_strided``.
_ALLOCATORS = {
    kind: getattr(torch._C._dynamo.guards, f"_empty_strided_{kind}")
    for kind in ("cpu", "cuda")
    if hasattr(torch._C._dynamo.guards, f"_empty_strided_{kind}")
}
#: The most calls of a function that are kept: one route has few.
_MOST = 32


class Replay:
    """``function(*tensors)``, which launches kernels, and what is known of its calls.

    Args:
        function: of tensors and None; what it returns is made of these too, in tuples and lists. Whatever
            else it depends on must be in the key of a call.
        patience: how many calls go by before one is recorded.
    """

    def __init__(self, function: Callable[..., Any], patience: int = 0) -> None:
        self.function = function
        self._patience = patience
        self._known: dict[Hashable, Callable[..., Any] | None] = {}
        self._generation = -1

    def __call__(self, key: Hashable, tensors: Sequence[Tensor | None]) -> Any:
        """``function(*tensors)``; ``key`` says all about these that it may depend on, except the values."""
        if door.watched():
            return self.function(*tensors)
        if self._generation != door._generation:  # tiles or decisions have changed
            self._known, self._generation = {}, door._generation
        try:
            again = self._known[key]
        except KeyError:
            return self._first(key, tensors)
        return self.function(*tensors) if again is None else again(*tensors)

    def _first(self, key: Hashable, tensors: Sequence[Tensor | None]) -> Any:
        if self._patience > 0:
            self._patience -= 1
            return self.function(*tensors)
        known = self._known
        if len(known) >= _MOST:
            known.pop(next(iter(known)), None)
        given: list[Tensor | None] = []
        for tensor in tensors:  # one given twice gets two names: next time they may be two tensors
            twice = tensor is not None and any(tensor is other for other in given)
            given.append(tensor.detach() if tensor is not None and twice else tensor)
        with _Recorder(given) as recorder, door.recorded(recorder.launched):
            result = self.function(*given)
        known[key] = recorder.compiled(result)
        return result


class _UnknownError(Exception):
    """Something that cannot be done again from the arguments alone."""


class _Recorder(TorchDispatchMode):
    """Writes down what is done with tensors, as lines of Python in which each has a name."""

    def __init__(self, tensors: Sequence[Tensor | None]) -> None:
        super().__init__()
        self._names: dict[int, str] = {}
        # Of a view that a compiled kernel reads, only the memory matters: it is made if more is wanted.
        self._views: dict[int, tuple[str, int, Any, tuple[Any, ...], dict[str, Any]]] = {}
        self._held: list[Any] = []  # an id stays a tensor's as long as that lives
        self._lines: list[tuple[str, list[str]]] = []  # each with the names that it reads
        self._constants: dict[str, Any] = {"relaunch": door.launch, "descriptor": _descriptor}
        self._fresh: set[str | None] = set()  # allocated here
        self._count = itertools.count()
        self._reads: list[str] = []
        self._typed = True  # named tuples keep their types; a compiled kernel's launcher takes any tuple
        self._whole = True
        self._arguments = [self._name(t) for t in tensors]
        self._index = next((t.device.index for t in tensors if t is not None and t.is_cuda), None)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if door.recording():
            self._try(self._op, func, args, kwargs or {}, result)
        return result

    def launched(self, launch: door.Launch, compiled: Any) -> None:
        """Told of every launch after it is made, with what Triton compiled for it."""
        self._try(self._launch, launch, compiled)

    def compiled(self, result: Any) -> Callable[..., Any] | None:
        """The lines as a function of the arguments that returns ``result`` anew; None if that cannot be."""
        self._reads, self._typed = [], True
        self._try(lambda: self._line(f"return {self._value(result)}"))
        if not self._whole:
            return None
        lines = [f"def replay({', '.join(self._arguments)}):"]
        if any("stream" in line for line, _ in self._lines):
            lines.append("    stream = get_stream(device)")
            active = door.driver.active
            self._constants["get_stream"] = active.get_current_stream
            self._constants["device"] = active.get_current_device()
        last = {name: i for i, (_, names) in enumerate(self._lines) for name in names}
        for i, (line, names) in enumerate(self._lines):
            lines.append(f"    {line}")
            # As the function frees it: what is no longer needed can be allocated again.
            done = [n for n in dict.fromkeys(names) if last[n] == i and n not in (*self._arguments, "0")]
            if done and not line.startswith("return"):
                lines.append(f"    del {', '.join(done)}")
        namespace = self._constants
        exec(compile("\n".join(lines), "<recorded launches>", "exec"), namespace)
        replay: Callable[..., Any] = namespace.pop("replay")
        if self._index is None or torch.cuda.device_count() < 2:
            return replay
        return _on(self._index, replay)

    def _try(self, write: Callable[..., None], *args: Any) -> None:
        if self._whole:
            try:
                write(*args)
            except _UnknownError:
                self._whole = False

    def _name(self, value: Any) -> str:
        name = f"t{next(self._count)}"
        if value is not None:
            self._names[id(value)] = name
            self._held.append(value)
        return name

    def _op(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        self._reads, self._typed = [], True
        if func in _ALLOCATIONS:
            if result.layout is not torch.strided or kwargs.get("pin_memory"):
                raise _UnknownError
            if result.numel() == 0:
                self._views[id(result)] = "0", 0, func, args, kwargs
                self._held.append(result)
                return
            shape, strides = tuple(result.shape), tuple(result.stride())
            allocate, options = self._constant(torch.empty_strided), f"dtype={self._constant(result.dtype)}"
            if result.device.type in _ALLOCATORS and result.device.index == self._index:
                allocate = self._constant(_ALLOCATORS[result.device.type])
                options = self._constant(result.dtype)
            else:
                options += f", device={self._constant(result.device)}"
            name = self._name(result)
            self._fresh.add(name)
            self._line(f"{name} = {allocate}({shape}, {strides}, {options})")
            return
        if func is _aten.detach.default and self._names.get(id(args[0])) in self._fresh:
            # Under a dispatch mode, torch's factories return another tensor of the same memory.
            self._names[id(result)] = self._names[id(args[0])]
            self._held.append(result)
            return
        if func.is_view and isinstance(result, Tensor) and isinstance(args[0], Tensor):
            root, offset = self._place(args[0])
            further = result.data_ptr() - args[0].data_ptr()
            self._views[id(result)] = root, offset + further, func, args, kwargs
            self._held.append(result)
            return
        self._do(func, args, kwargs, result)

    def _do(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        call = [self._value(a) for a in args] + [f"{k}={self._value(v)}" for k, v in kwargs.items()]
        results = result if isinstance(result, tuple | list) else (result,)
        if not all(isinstance(r, Tensor) for r in results):  # a number: a value decides
            raise _UnknownError
        names = [self._names.get(id(r)) or self._name(r) for r in results]
        target = f"{', '.join(names)}{',' if isinstance(result, tuple | list) else ''}"
        self._line(f"{target} = {self._constant(func)}({', '.join(call)})")

    def _launch(self, launch: door.Launch, compiled: Any) -> None:
        self._reads, self._typed = [], compiled is None
        kernel, grid, args, options = launch
        if compiled is None:  # interpreted, or by a Triton whose way of launching is unknown
            named = [f"{name}={self._value(value)}" for name, value in options.items()]
            call = ", ".join([self._constant(kernel), repr(grid), *map(self._value, args), *named])
            self._line(f"relaunch({call})")
            return
        call = ", ".join(self._value(value) for value in door.in_order(kernel, args, options))
        x, y, z = (*grid, 1, 1)[:3]
        function, metadata = self._constant(compiled.function), self._constant(compiled.packed_metadata)
        run = self._constant(compiled.run)
        self._line(f"{run}({x}, {y}, {z}, stream, {function}, {metadata}, None, None, None, {call})")

    def _place(self, tensor: Tensor) -> tuple[str, int]:
        """Whose memory a tensor has, and how many bytes further on."""
        if id(tensor) in self._views:
            return self._views[id(tensor)][:2]
        return self._named(tensor), 0

    def _named(self, tensor: Tensor) -> str:
        if id(tensor) in self._views:  # so far only its memory was asked for
            _, _, func, args, kwargs = self._views.pop(id(tensor))
            reads, self._reads = self._reads, []
            self._do(func, args, kwargs, tensor)
            self._reads = reads
        name = self._names.get(id(tensor))
        if name is None:  # made where it was not recorded
            raise _UnknownError
        return name

    def _line(self, line: str) -> None:
        self._lines.append((line, self._reads))

    def _value(self, value: Any) -> str:
        """``value`` in a line: a tensor by its name, tuples by their members, the rest as it is."""
        if isinstance(value, Tensor):
            name, offset = (self._named(value), 0) if self._typed else self._place(value)
            self._reads.append(name)
            return f"{name}.data_ptr() + {offset}" if offset else name
        if value is None or type(value) in (bool, int) or (type(value) is float and math.isfinite(value)):
            return repr(value)
        if isinstance(value, tuple | list):
            if not any(True for _ in door.tensors_in(value)):
                return self._constant(value)
            members = "".join(f"{self._value(member)}, " for member in value)
            if isinstance(value, list):
                return f"[{members}]"
            named = self._typed and hasattr(value, "_fields")
            return f"{self._constant(type(value))}({members})" if named else f"({members})"
        if isinstance(value, TensorDescriptor):
            root, offset = self._place(value.base)
            name = self._named(value.base) if offset else root  # it takes a tensor's address
            self._reads.append(name)
            return f"descriptor({self._constant(_descriptor(value, None))}, {name})"
        if not isinstance(value, _PLAIN):
            raise _UnknownError
        return self._constant(value)

    def _constant(self, value: Any) -> str:
        for name, known in self._constants.items():
            if known is value or (isinstance(value, torch.device) and known == value):
                return name
        name = f"c{len(self._constants)}"
        self._constants[name] = value
        return name


#: Constants, which hold no tensor.
_TORCHS = torch.dtype, torch.device, torch.layout, torch.memory_format
_PLAIN = (int, float, str, *_TORCHS, tl.constexpr, tl.dtype)


def _descriptor(like: TensorDescriptor, base: Tensor | None) -> TensorDescriptor:
    """TMA's descriptor of other memory; what it requires of the address is in the key."""
    made = copy.copy(like)
    made.base = base
    return made


def _on(index: int, replay: Callable[..., Any]) -> Callable[..., Any]:
    """``replay`` where another device may be the current one."""

    def on_device(*tensors: Tensor | None) -> Any:
        if torch.cuda.current_device() == index:
            return replay(*tensors)
        with torch.cuda.device(index):
            return replay(*tensors)

    return on_device
