"""Memory for large results on a CPU.

The C library gives memory of more than 32 MB back at once, so that every large result starts as pages
which the kernel has to map and clear one by one: three quarters of a softmax of (2048, 32000). So the last
such buffer is kept, up to 512 MiB, and used again once nobody else holds it, as a training loop does with a
logits' gradient at every step.

New memory is asked for in huge pages where the system hands them out on request, which alone made that
softmax 2.6 times as fast. It is not enough: in a virtual machine that tells its host which huge pages are
free (virtio's free page reporting, within 2 s) they may have lost their memory by the next request, and
first writing to 263 MB took 170 to 350 ms instead of 21 to 65.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

_LEAST = 1 << 25  # glibc's largest threshold: less than this it may keep, mapped, for the next request
_MOST = 1 << 29  # what is kept at most
_PAGE = 4096
_MADV_HUGEPAGE = 14
#: How many hold a storage in C++; None where torch does not tell, and then nothing is kept.
_holders: Callable[[int], int] | None = getattr(torch._C, "_storage_Use_Count", None)
#: One, or none yet. Who looks takes it out, so that two threads are never given the same, without a lock,
#: which a fork or a finalizer could find taken.
_kept: list[torch.UntypedStorage] = []


def large_like(tensor: Tensor) -> Tensor:
    """``torch.empty_like(tensor)`` for a contiguous tensor on a CPU; where it is large, from memory kept."""
    size = tensor.numel() * tensor.element_size()
    if size < _LEAST:
        return torch.empty_like(tensor)
    try:
        mine = [_kept.pop()]
    except IndexError:
        mine = []
    if mine and mine[0].nbytes() == size and _is_free(mine):
        made = tensor.new_empty(0).set_(mine[0], 0, tensor.shape, tensor.stride())
    else:
        mine.clear()  # before there is more
        made = _from_huge_pages(tensor, size)
        if size <= _MOST and _holders is not None:
            mine.append(made.untyped_storage())
    _kept[:] = mine
    return made


def release() -> None:
    """Give the kept memory back to the system, unless somebody holds it still."""
    _kept.clear()


def _is_free(mine: list[torch.UntypedStorage]) -> bool:
    """Whether the list alone holds its storage: no tensor, no view, no array over it, no other process."""
    assert _holders is not None
    unheld = sys.getrefcount(mine[0]) == _UNHELD  # an `untyped_storage()` of the user's is this very object
    return unheld and _holders(mine[0]._cdata) == 1 and not mine[0].is_shared()


def _unheld() -> int:
    """What `sys.getrefcount` says of an object in a list, which differs among Pythons."""
    alone = [object()]
    return sys.getrefcount(alone[0])


_UNHELD = _unheld()


def _from_huge_pages(tensor: Tensor, size: int) -> Tensor:
    made = torch.empty_like(tensor)
    madvise = _madvise()
    if madvise is not None:
        start = -(-made.data_ptr() // _PAGE) * _PAGE
        madvise(start, (made.data_ptr() + size - start) // _PAGE * _PAGE, _MADV_HUGEPAGE)  # a hint: may fail
    return made


@cache
def _madvise() -> Any:
    if not sys.platform.startswith("linux"):
        return None
    function = getattr(ctypes.CDLL(None), "madvise", None)
    if function is not None:
        function.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return function
