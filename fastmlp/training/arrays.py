"""Tensors from NumPy's arrays, tables of pandas and polars, lists, and batches of a data set."""

from __future__ import annotations

import sys
import warnings
from typing import Any

import torch
from torch import Tensor

#: Features, with labels or targets.
Pair = tuple[Tensor, Tensor]

#: What to do if no tensor can be made.
_REMEDIES = {
    "features": "rows of one length and of one kind of number, as after astype('float32'), make one",
    "targets": "names, y = numpy.unique(y, return_inverse=True) numbers classes from 0",
}

_COPY = 1 << 30  # bytes of a mapped file that may be copied to memory, to bring them into order


def is_array(value: object) -> bool:
    """Whether ``value`` is a NumPy array."""
    numpy = sys.modules.get("numpy")  # torch does not need it, and whoever has an array has imported it
    return numpy is not None and isinstance(value, numpy.ndarray)


def holds_numbers(value: object) -> bool:
    """Whether `tensor_of` can convert ``value``, or say why not."""
    known = isinstance(value, (Tensor, list, tuple)) or is_array(value) or _is_sparse(value)
    return known or hasattr(value, "to_numpy") or hasattr(value, "__array__")  # pandas, polars; JAX


def tensor_of(value: Any, name: str, what: str) -> Tensor:
    """``value`` as a tensor, of the same memory if torch can read how it is laid out.

    Args:
        value: something that `holds_numbers`.
        name: of the data, for messages.
        what: "features" or "targets".

    Raises:
        ValueError: no tensor can be made of it, with what to do.
    """
    if isinstance(value, Tensor):
        if value.layout != torch.strided:
            raise ValueError(f"{name}: expected dense {what}, got {value.layout}; to_dense() makes such")
        return value.detach()  # else each step would add to its gradient
    if _is_sparse(value):
        raise ValueError(f"{name}: expected dense {what}, got a {type(value).__name__}; toarray() makes such")
    if isinstance(value, (list, tuple)):
        return _of_list(value, name, what)
    array = value
    if not is_array(value):
        array = value.to_numpy() if hasattr(value, "to_numpy") else value.__array__()
    if getattr(array, "mask", False) is not False and array.mask.any():
        raise ValueError(
            f"{name}: expected {what} all there, got a masked array; filled(number) replaces what is missing"
        )
    return _of_array(array, name, what)


def _of_array(array: Any, name: str, what: str) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it may not be writable: nobody here writes
        try:
            return torch.from_numpy(array)
        except ValueError as error:  # reversed rows, or another machine's byte order
            if getattr(array, "_mmap", None) is not None and array.nbytes > _COPY:
                kind = f"{array.dtype} of strides {array.strides}"
                raise ValueError(
                    f"{name}: expected a file that torch can read as it is, got {kind} ({error})"
                ) from error
            return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), order="C"))
        except TypeError as error:
            example = f", such as {array.flat[0]}" if array.size else ""
            raise _refusal(f"an array of {array.dtype}{example}", name, what) from error


def _of_list(values: Any, name: str, what: str) -> Tensor:
    try:
        if len(values) and (isinstance(values[0], Tensor) or is_array(values[0])):
            return torch.stack([_row(value, name, what) for value in values])
        made = torch.tensor(values, device="cpu")
        return torch.tensor(values, device="cpu", dtype=torch.float64) if made.is_floating_point() else made
    except (TypeError, ValueError, RuntimeError) as error:
        said = str(error).splitlines()[0]
        got = f"a {type(values).__name__} of which torch makes no tensor ({said})"
        raise _refusal(got, name, what) from error


def _row(value: Any, name: str, what: str) -> Tensor:
    known = isinstance(value, Tensor) or is_array(value)
    return tensor_of(value, name, what) if known else torch.as_tensor(value, device="cpu")


def _refusal(got: str, name: str, what: str) -> ValueError:
    return ValueError(f"{name}: expected {what} that are numbers, got {got}; {_REMEDIES[what]}")


def _is_sparse(value: object) -> bool:
    return type(value).__module__.startswith("scipy.sparse") and hasattr(value, "toarray")


def tensors_of(pair: tuple[Any, Any], name: str) -> Pair:
    """Both parts by `tensor_of`, with as many rows, integer targets as int64; or a ValueError."""
    x, y = (tensor_of(part, name, what) for part, what in zip(pair, _REMEDIES))
    return _matched(x, y, name)


def batch_of(batch: Any, name: str) -> Pair:
    """A batch that a data set or a loader of the user's made, as `tensors_of`; or a ValueError."""
    x, y = pair_of(batch, name, "batches")
    if not isinstance(x, Tensor) or not isinstance(y, Tensor):
        raise ValueError(
            f"{name}: expected batches of two tensors (features, targets), got {kind_of(x)} and {kind_of(y)}"
        )
    return _matched(x.detach(), y.detach(), name)


def pair_of(item: Any, name: str, what: str) -> tuple[Any, Any]:
    """``item`` if it is a pair; or a ValueError with what would make it one."""
    if isinstance(item, (tuple, list)) and len(item) == 2:
        return item[0], item[1]
    raise ValueError(
        f"{name}: expected {what} (features, target), got {kind_of(item)}; wrap the data set in one that "
        "gives pairs, or give a DataLoader with such a collate_fn"
    )


def kind_of(item: Any) -> str:
    """What ``item`` is, for messages."""
    if isinstance(item, dict):
        return f"a dict of {', '.join(map(str, item))}"
    if isinstance(item, (tuple, list)):
        return f"a {type(item).__name__} of {len(item)}"
    if type(item).__module__.split(".")[0] == "PIL":
        return "a PIL image"
    name = type(item).__name__
    return f"{'an' if name[0] in 'aeiouAEIO' or name == 'ndarray' else 'a'} {name}"


def _matched(x: Tensor, y: Tensor, name: str) -> Pair:
    """Both, integer targets as int64; a ValueError unless each row of the features has one."""
    y = y if y.is_floating_point() or y.is_complex() else y.to(torch.int64)
    if x.dim() == 0 or len(x) == 0:
        raise ValueError(f"{name}: expected at least one example, got {tuple(x.shape)}")
    if y.dim() == 0 or len(y) != len(x):
        expected = f"targets ({len(x)}, ...)" if y.is_floating_point() else f"labels ({len(x)},) torch.int64"
        raise ValueError(f"{name}: expected {expected}, got {tuple(y.shape)} {y.dtype}")
    return x, y
