"""A call is decided once: what it may depend on is a key, and under the key is kept how it goes.

The key of a call says all of its arguments but the values: types, dtypes, devices, shapes, strides, what
wants a gradient, how memory is aligned. Beside them stand the circumstances: what is asked for, grad mode,
autocast, TF32. Whoever finds a route by its key has nothing more to ask.
"""

from __future__ import annotations

import os
from collections.abc import Hashable, Sequence
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from fastmlp import backends, profiler_ranges

R = TypeVar("R")

#: So many routes of a function are kept; the oldest goes.
_MOST = 1024
#: Of more than so many, such as those of ragged batches, only what comes again is worth recording.
_AT_ONCE = 64
#: Types of arguments that are no more than they seem.
PLAIN = {Tensor, nn.Parameter, type(None)}
#: Not ``os.environ``, which would decode at every look.
_environment: Any = getattr(os.environ, "_data", os.environ)
_DEBUG, _ON = (b"FASTMLP_DEBUG", b"1") if b"PATH" in _environment else ("FASTMLP_DEBUG", "1")
_tf32 = getattr(torch._C, "_get_fp32_precision_getter", None)


def precision() -> object:
    """torch's setting for float32 products on a GPU."""
    return _tf32("cuda", "matmul") if _tf32 is not None else torch.backends.cuda.matmul.fp32_precision


def debugging() -> bool:
    """Whether ``FASTMLP_DEBUG=1`` asks for checks of values."""
    return bool(_environment.get(_DEBUG) == _ON)


def circumstances(kind: str) -> tuple[Any, ...] | None:
    """What a call on a device of ``kind`` depends on beside its arguments.

    None where nothing is to be kept: somebody traces or transforms the call, profiles it or checks values.
    """
    if (
        torch.compiler.is_compiling()
        or kind == "meta"
        or profiler_ranges.opened()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
        or torch._C._is_tracing()
        or (torch._C._len_torch_function_stack() and backends.overridden())
        or debugging()
    ):
        return None
    return backends.requested(), torch.is_inference_mode_enabled(), *_modes()


def _modes() -> tuple[Any, ...]:
    kinds = ("cpu", "cuda")
    cast = [torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) for kind in kinds]
    return torch.is_grad_enabled(), *cast, precision()


class PlainModes:
    """Grad mode, autocast and TF32 as they are now."""

    def __init__(self) -> None:
        self._now = _modes()

    def check(self) -> bool:
        """Whether they still are."""
        return _modes() == self._now


#: What torch.compile guards them with says it in one call instead of five. No public interface; in older
#: versions it was not tried with settings of TF32 that contradict each other, of which torch complains.
_tried = torch.__version__ >= "2.11"
Modes: Any = getattr(torch._C._dynamo.guards, "GlobalStateGuard", PlainModes) if _tried else PlainModes


def describe(tensors: Sequence[Tensor | None]) -> Hashable:
    """What a launch may depend on of tensors, but for their values; None where one is not a plain tensor."""
    if not PLAIN.issuperset(map(type, tensors)):
        return None
    try:
        return tuple(
            [
                None
                if t is None
                else (
                    *(type(t), t.dtype, t.device, t.shape, t.stride()),
                    *(t.requires_grad, t.is_neg(), t.data_ptr() & 15),
                )
                for t in tensors
            ]
        )
    except RuntimeError:  # sparse, or a transform's: it has no memory of the kind
        return None


class Like:
    """Whether tensors are like some others, as `describe` has it; torch's own guards say so in one call.

    Of one tensor in two places they say no, which costs a look by the key.
    """

    def __init__(self, tensors: Sequence[Tensor | None], described: Hashable) -> None:
        there = [t for t in tensors if t is not None]
        self._count = len(tensors)
        self._absent = [i for i, t in enumerate(tensors) if t is None]
        self._described = described
        self._check = None
        if _guards is not None and all(t.data_ptr() & 15 == 0 for t in there):  # which those do not ask
            sizes, strides = [list(t.shape) for t in there], [list(t.stride()) for t in there]
            self._check = _guards(*there, dynamic_dims_sizes=sizes, dynamic_dims_strides=strides).check

    def __call__(self, tensors: Sequence[Tensor | None]) -> bool:
        """Whether these ``tensors`` are."""
        if self._check is None:
            return describe(tensors) == self._described
        if len(tensors) != self._count:
            return False
        if self._absent:
            if any([tensors[i] is not None for i in self._absent]):
                return False
            tensors = [t for t in tensors if t is not None]
            if len(tensors) + len(self._absent) != self._count:
                return False
        if not self._check(*tensors):
            return False
        low = 0
        for t in tensors:
            low |= t.data_ptr()  # type: ignore[union-attr]
        return low & 15 == 0


def _find_guards() -> Any:
    """torch's guards, which are no public interface, if they do what is expected of them."""
    try:
        guards: Any = torch._C._dynamo.guards.TensorGuards
        x = torch.zeros(2, 3, dtype=torch.float32, device="cpu")
        same = guards(x, dynamic_dims_sizes=[[2, 3]], dynamic_dims_strides=[[3, 1]]).check
        others = x.double(), x[:1], x.t().contiguous().t(), x.clone().requires_grad_(), nn.Parameter(x)
        works = same(torch.zeros_like(x)) and not any(map(same, (*others, torch._neg_view(x))))
    except Exception:
        return None
    return guards if works else None


_guards = _find_guards()


def _seen() -> bool:
    """Whether somebody looks on whom neither a `Like` nor `Modes` see: see `circumstances`."""
    return (
        profiler_ranges._opener is not None
        or forward_ad._current_level >= 0
        or torch._C._len_torch_function_stack() > 0
        or debugging()
    )


class Last(Generic[R]):
    """The last call of somebody, and how it went."""

    def __init__(self) -> None:
        self.call: tuple[Hashable, Like, str, Any, R] | None = None


class Routes(Generic[R]):
    """The routes of one function, by their keys."""

    def __init__(self) -> None:
        self._known: dict[Hashable, R] = {}

    def find(
        self, what: Hashable, tensors: Sequence[Tensor | None], last: Last[R]
    ) -> tuple[R | None, Hashable | None]:
        """How a call goes, if that is known; else, and if it is to be remembered, by which key.

        Off the GPU nothing is: torch's own ops, which decide for themselves, run there.

        Args:
            what: the arguments that are no tensors.
            tensors: the others, of which the first one says where the call runs.
            last: the caller's last call, which this one is most often like.
        """
        first = tensors[0]
        if torch.compiler.is_compiling() or backends.off_gpu(first):
            return None, None
        if last.call is not None:
            known, like, asked, modes, route = last.call
            same = known == what and asked == backends._asked[-1].name and modes.check() and like(tensors)
            if same and not _seen():
                return route, None
        if type(first) not in PLAIN or first is None:
            return None, None
        kind = first.device.type
        around = circumstances(kind)
        if around is None:
            return None, None
        described = describe(tensors)
        if described is None:
            return None, None
        key = what, around, described
        way = self._known.get(key)
        if way is not None:
            last.call = what, Like(tensors, described), backends.requested(), Modes(), way
        return way, key

    def keep(self, key: Hashable | None, route: R) -> R:
        """Remember ``route``, which is returned; for None it is not."""
        if key is not None:
            if len(self._known) >= _MOST:
                self._known.pop(next(iter(self._known)), None)
            self._known[key] = route
        return route

    def patience(self, key: Hashable | None) -> int:
        """How many calls of a new route are not worth recording."""
        return 0 if key is not None and len(self._known) < _AT_ONCE else 1
