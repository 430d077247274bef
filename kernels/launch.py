"""The one door through which every kernel is launched.

One door lets the rest of the project count launches, see their arguments, or compile
without launching, with the very code that runs in production.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from threading import RLock, local
from typing import Any, NamedTuple

import torch
import triton
from triton import knobs
from triton.runtime import driver

#: True when ``TRITON_INTERPRET=1`` was set before Triton was imported: kernels run on CPU tensors.
INTERPRETED: bool = knobs.runtime.interpret


class Launch(NamedTuple):
    """One kernel launch: which kernel, over which grid, with which arguments."""

    kernel: Any
    grid: tuple[int, ...]
    args: tuple[Any, ...]
    options: dict[str, Any]

    @property
    def name(self) -> str:
        """The kernel's function name."""
        return self.kernel.__name__

    @property
    def named(self) -> dict[str, Any]:
        """Its arguments by their names in the kernel's signature, and its options."""
        return dict(zip(self.kernel.arg_names, self.args)) | self.options


_observers: list[Callable[[Launch], None]] = []
_around: Callable[[Launch], AbstractContextManager[tuple[Any, ...]]] | None = None
_dry = False


def launch(kernel: Any, grid: tuple[int, ...], *args: Any, **options: Any) -> None:
    """Launch ``kernel`` over ``grid``; ``options`` are its constexprs and compile options.

    A kernel with a true constexpr PDL is launched as its predecessor's programmatic dependent.
    """
    if options.get("PDL"):
        options["launch_pdl"] = True
    if _observers:
        for observer in tuple(_observers):  # another thread may take one out
            observer(Launch(kernel, grid, args, options))
    if _dry:
        return
    if not INTERPRETED:
        # Explicit because Triton 3.10 changes the default: a*b+c may contract to an FMA.
        options["enable_fp_fusion"] = True
    recorder, _thread.recorder = _thread.recorder, None  # an interpreted kernel calls torch's ops
    try:
        with on_device(args[0]):
            around = _around
            if around is None:
                compiled = kernel[grid](*args, **options)
            else:
                with around(Launch(kernel, grid, args, options)) as replaced:
                    compiled = kernel[grid](*replaced, **options)
    finally:
        _thread.recorder = recorder
    if recorder is not None:
        recorder(Launch(kernel, grid, args, options), None if fast_problem() else compiled)


class _Thread(local):
    """What a thread is doing."""

    recorder: Callable[[Launch, Any], None] | None = None


_thread = _Thread()


def recording() -> bool:
    """Whether what this thread does is being recorded, and is not within a launch."""
    return _thread.recorder is not None


@contextmanager
def recorded(recorder: Callable[[Launch, Any], None]) -> Iterator[None]:
    """Tell ``recorder`` every launch of this thread and what Triton compiled for it, if that is known."""
    _thread.recorder = recorder
    try:
        yield
    finally:
        _thread.recorder = None


_runtime, _compilation = knobs.runtime, knobs.compilation


def watched() -> bool:
    """Whether every launch has to go through `launch` now, because something looks at it there.

    An observer or a dry run; Triton's own hooks, which profilers set; what Triton instruments or checks; or a
    recorder at work.
    """
    runtime = _runtime
    return bool(
        _observers
        or _around is not None
        or _dry
        or runtime.launch_enter_hook.calls
        or runtime.launch_exit_hook.calls
        or runtime.debug
        or getattr(runtime, "add_stages_inspection_hook", None)  # Triton 3.5 has neither
        or getattr(_compilation, "instrumentation_mode", None)
        or _thread.recorder is not None
    )


@cache
def fast_problem() -> str | None:
    """Why a compiled kernel is not launched directly but by Triton's own ``run``; None if it is.

    What ``run`` passes on is not a public interface: if it looks different, nothing is guessed.
    """
    if INTERPRETED:
        return "kernels are interpreted"
    try:
        source = "".join(inspect.getsource(triton.JITFunction.run).split())
        knobs.runtime.launch_enter_hook.calls, knobs.runtime.debug, knobs.compilation.instrumentation_mode  # noqa: B018
        knobs.runtime.add_stages_inspection_hook  # noqa: B018
    except (AttributeError, OSError) as error:
        return f"Triton {triton.__version__} launches in a way that is not known ({error})"
    if _RUN not in source:
        return f"Triton {triton.__version__} launches in a way that is not known"
    return None


_RUN = (
    "kernel.run(grid_0,grid_1,grid_2,stream,kernel.function,kernel.packed_metadata,launch_metadata,"
    "knobs.runtime.launch_enter_hook,knobs.runtime.launch_exit_hook,*bound_args.values())"
)


def in_order(kernel: Any, args: tuple[Any, ...], options: dict[str, Any]) -> list[Any]:
    """All arguments of ``kernel``'s function, in the order of its signature."""
    rest = kernel.params[len(args) :]
    return [*args, *(options[p.name] if p.name in options else p.default for p in rest)]


#: Changes whenever tiles or decisions do.
_generation = 0


def forget() -> None:
    """Forget all recorded calls: what they were decided by has changed."""
    global _generation
    _generation += 1


def launch_if(needed: bool, kernel: Any, grid: tuple[int, ...], *args: Any, **options: Any) -> None:
    """Launch ``kernel`` if ``needed``; else make sure that it is compiled.

    For a second kernel that sums partial results, which only a long batch needs: compiled along with
    the first, it is ready when such a batch comes, and a new batch size compiles nothing.
    """
    if needed:
        launch(kernel, grid, *args, **options)
        return
    if INTERPRETED or _dry:
        return
    key = (kernel, *map(_kind, args), *options.values())
    if key not in _compiled:
        _compiled.add(key)
        with on_device(args[0]):
            kernel.warmup(*args, grid=grid, enable_fp_fusion=True, **options)


def _kind(argument: Any) -> Any:
    """What a kernel is compiled for: a tensor's dtype, and everything else as it is."""
    if isinstance(argument, torch.Tensor):
        return argument.dtype
    return tuple(map(_kind, argument)) if isinstance(argument, tuple) else argument


_compiled: set[tuple[Any, ...]] = set()
#: The interpreter runs one program at a time in the whole process.
_interpreter = RLock()


def on_device(argument: Any) -> Any:
    """A context in which Triton launches on the GPU of a kernel's first argument, not on the current one."""
    if INTERPRETED:
        return _interpreter
    return torch.cuda.device_of(next(tensors_in(argument)))


def tensors_in(argument: Any) -> Iterator[torch.Tensor]:
    """The tensors of a kernel's argument: itself, a descriptor's, those of a tuple or a list."""
    if isinstance(argument, torch.Tensor):
        yield argument
    elif isinstance(argument, tuple | list):
        for member in argument:
            yield from tensors_in(member)
    elif isinstance(getattr(argument, "base", None), torch.Tensor):
        yield argument.base


@contextmanager
def observe(observer: Callable[[Launch], None]) -> Iterator[None]:
    """Call ``observer`` with every launch made inside the ``with`` block."""
    _observers.append(observer)
    try:
        yield
    finally:
        _observers.remove(observer)


@contextmanager
def around(wrapper: Callable[[Launch], AbstractContextManager[tuple[Any, ...]]]) -> Iterator[None]:
    """Inside the ``with`` block every launch is made in ``wrapper(launch)``, with the arguments it gives."""
    global _around
    before, _around = _around, wrapper
    try:
        yield
    finally:
        _around = before


@contextmanager
def record_launches() -> Iterator[list[Launch]]:
    """Collect the launches made inside the ``with`` block; ``len`` of the list counts them."""
    launches: list[Launch] = []
    with observe(launches.append):
        yield launches


@contextmanager
def dry_run(target: Any) -> Iterator[None]:
    """Launch nothing inside the ``with`` block, and pretend that ``target`` is the GPU.

    ``target`` is a ``triton.backends.compiler.GPUTarget``. Launchers choose their tiles for it
    and the observers see every launch; tensors may live on the ``meta`` device.
    """
    global _dry
    before = driver._active  # `driver.active` would look for a real GPU
    driver.set_active(_TargetOnly(target))
    _arch_of_device.cache_clear()
    _dry = True
    try:
        yield
    finally:
        _dry = False
        driver._active = before
        _arch_of_device.cache_clear()


class _TargetOnly:
    """As much of a Triton driver as compiling needs: a target, a device, no stream."""

    def __init__(self, target: Any) -> None:
        self._target = target

    def get_current_target(self) -> Any:
        return self._target

    def get_current_device(self) -> Any:
        return self._target  # Triton keeps its compiled kernels by device: those of two targets never mix

    def get_current_stream(self, device: Any) -> int:
        return 0


def arch_of(tensor: torch.Tensor) -> str:
    """The architecture that a launch on ``tensor`` is for: ``"sm_90"``, ``"gfx942"``, ``"interpret"``."""
    if INTERPRETED:
        return "interpret"
    return _arch_of_device(tensor.device.index or 0)


def has_dependent_launch(arch: str) -> bool:
    """Whether ``arch`` has programmatic dependent launch: sm_90 and later."""
    return arch.startswith("sm_") and int("".join(c for c in arch if c.isdigit())) >= 90


#: Whether ``arch`` has the tensor memory accelerator: also sm_90 and later.
has_tma = has_dependent_launch


@cache
def _arch_of_device(index: int) -> str:
    with torch.cuda.device(index if torch.cuda.is_available() else -1):
        target = driver.active.get_current_target()
    return f"sm_{target.arch}" if target.backend == "cuda" else str(target.arch).split(":")[0]


@cache
def num_sms(index: int) -> int:
    """Multiprocessors of GPU ``index``; 132 (an H100's or H200's) if there is no GPU to ask."""
    if not torch.cuda.is_available():
        return 132
    return torch.cuda.get_device_properties(index).multi_processor_count


def cdiv(a: int, b: int) -> int:
    """``a / b`` rounded up."""
    return -(-a // b)


def next_power_of_2(n: int) -> int:
    """The smallest power of two that is at least ``n``."""
    return triton.next_power_of_2(n)
