"""Checkpoints as safetensors: loading one runs no code, a crash while writing loses none, damage is noticed.

The file's metadata hold one entry, "fastmlp", a JSON text that begins with the SHA-256 of the whole file,
in which these 64 digits themselves count as zeros.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from fastmlp import files
from fastmlp.training.identity import is_scalar, short

_ZEROS = "0" * 64
_CHECKSUM = re.compile(rb'"fastmlp":"\{\\"sha256\\": \\"([0-9a-f]{64})\\"')


def save(net: nn.Module, path: Path | str, metadata: dict[str, Any] | None = None) -> None:
    """Write ``net``'s state to ``path``, by way of a temporary file, fsync and rename.

    Args:
        net: its ``state_dict`` is saved; tensors that share memory are saved once each.
        path: of the checkpoint; missing directories are made.
        metadata: anything JSON can hold, such as what it takes to build the net again.

    Raises:
        OSError: the file cannot be written. What was at ``path`` is then still there.
        TypeError: the state holds something other than tensors.
    """
    state = net.state_dict()
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"net: expected tensors in its state, got {name} as a {type(value).__name__}")
    write(path, state, {"metadata": metadata or {}})


def load(path: Path | str, device: torch.device | str = "cpu") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The net's state and the metadata of a checkpoint that `save` or `fit` wrote.

    Raises:
        FileNotFoundError: there is none.
        ValueError: the file is not a checkpoint, or truncated, or not as it was written.
    """
    state, content = read(path)
    if "state" in content:
        with of_a_run(path):
            tree = unflatten(content["state"], state)
            require(isinstance(tree, dict) and is_named(tree.get("net")), "state", tree)
            state = tree["net"]
    moved = {name: t.to(device) if isinstance(t, Tensor) else t for name, t in state.items()}
    return moved, content["metadata"]


def load_into(net: nn.Module, path: Path | str) -> dict[str, Any]:
    """Load a checkpoint's state into ``net``, and return the metadata.

    Raises:
        FileNotFoundError, ValueError: as `load`.
        ValueError: it is another net's, with the names, shapes or dtypes that differ. Nothing is written.
    """
    state, metadata = load(path)
    check(net, state, str(path))
    put(net, state)
    return metadata


def check(module: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Check that ``state`` is one of ``module``.

    Raises:
        ValueError: it is not, with the names, shapes or dtypes that differ.
    """
    own = module.state_dict()
    problems = [f"{name} is missing" for name in own if name not in state]
    problems += [f"{short(name)} is unknown here" for name in state if name not in own]
    problems += [
        f"{name} is {_kind(state[name])}, here {_kind(own[name])}"
        for name in own
        if name in state and not _fits(state[name], own[name])
    ]
    if problems:
        more = f" and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise ValueError(f"{source}: the state of another net: {'; '.join(problems[:8])}{more}")


def put(module: nn.Module, state: dict[str, Tensor]) -> None:
    """Load a checked ``state`` as one of this very structure, not as an older version's."""
    full = module.state_dict()
    full.update(state)  # keeps the modules' versions, which stand beside the entries
    module.load_state_dict(full)


def _fits(value: Any, own: Any) -> bool:
    return isinstance(value, Tensor) if is_lazy(own) else _kind(value) == _kind(own)


def _kind(value: Any) -> str:
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"


def write(path: Path | str, tensors: dict[str, Tensor], content: dict[str, Any]) -> None:
    """Write ``tensors`` and ``content``, anything JSON can hold, with a checksum over all of it."""
    from safetensors.torch import save as to_bytes

    copies = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }
    data = to_bytes(copies, {"fastmlp": json.dumps({"sha256": _ZEROS, **content})})
    start, end, digest = _checksum(data)
    view = memoryview(data)
    files.write(Path(path), (view[:start], digest.encode(), view[end:]))


def read(path: Path | str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `write` wrote; raises as `load`."""
    from safetensors import SafetensorError
    from safetensors.torch import load as from_bytes

    data = Path(path).read_bytes()
    try:
        start, end, digest = _checksum(data)
    except ValueError as error:
        raise ValueError(f"{path}: expected a safetensors checkpoint of fastmlp's, {error}") from None
    if data[start:end] != digest.encode():
        raise ValueError(
            f"{path}: expected a safetensors checkpoint as it was written, but this one is truncated, "
            f"damaged or changed: it fails its checksum"
        )
    try:
        tensors = from_bytes(data)
        header = json.loads(data[8 : _header_end(data)])
        content = json.loads(header["__metadata__"]["fastmlp"])
        if not isinstance(content["metadata"], dict):
            raise ValueError("metadata is not an object")
    except (SafetensorError, LookupError, TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise ValueError(
            f"{path}: expected a safetensors checkpoint of fastmlp's ({error!r:.200})"
        ) from error
    return tensors, content


def is_one(path: Path) -> bool:
    """Whether `write` wrote it, by how it begins; it may be damaged."""
    with path.open("rb") as file:
        return _CHECKSUM.search(file.read(256)) is not None


def _header_end(data: bytes) -> int:
    return 8 + int.from_bytes(data[:8], "little")


def _checksum(data: bytes) -> tuple[int, int, str]:
    """Where the digits of the checksum are in a file, and what they must be."""
    end = _header_end(data)
    if len(data) < max(end, 8):
        raise ValueError("found a truncated file or one of another kind")
    found = _CHECKSUM.search(data, 0, end)
    if found is None:
        raise ValueError("found none of its checksums: read others by safetensors.torch.load_file")
    view, (start, stop) = memoryview(data), found.span(1)
    digest = hashlib.sha256(view[:start])
    digest.update(_ZEROS.encode())
    digest.update(view[stop:])
    return start, stop, digest.hexdigest()


def flatten(tree: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """``tree``, nested containers, in a form for JSON; each tensor goes to ``tensors`` under its path.

    Raises:
        TypeError: anything but tensors, numbers, strings, None, and dicts, lists and tuples of them.
    """
    prefix = f"{name}." if name else ""
    if isinstance(tree, Tensor):
        while name in tensors:  # {"a": {"b": 0}, "a.b": 0}
            name += "'"
        tensors[name] = tree
        return {"tensor": name}
    if isinstance(tree, dict):
        return {"dict": [[key, flatten(value, f"{prefix}{key}", tensors)] for key, value in tree.items()]}
    if isinstance(tree, (list, tuple)):
        kind = "tuple" if isinstance(tree, tuple) else "list"
        return {kind: [flatten(value, f"{prefix}{i}", tensors) for i, value in enumerate(tree)]}
    if is_scalar(tree):
        return tree
    raise TypeError(f"{name}: a {type(tree).__name__}; a checkpoint holds tensors, numbers and strings")


def unflatten(tree: Any, tensors: dict[str, Tensor]) -> Any:
    """What `flatten` was given; a ValueError for anything that it does not return."""
    left = dict(tensors)
    found = _unflatten(tree, left)
    if left:
        raise ValueError(f"its state has no place for {next(iter(left))!r}")
    return found


def _unflatten(tree: Any, tensors: dict[str, Tensor]) -> Any:
    """`unflatten`, which takes each tensor out of ``tensors``: or two places would share one."""
    if is_scalar(tree):
        return tree
    kind, content = next(iter(tree.items())) if isinstance(tree, dict) and len(tree) == 1 else ("", None)
    if kind == "tensor" and isinstance(content, str):
        if content not in tensors:
            raise ValueError(f"there is no tensor {content!r}, or it is in two places")
        return tensors.pop(content)
    if kind == "dict" and isinstance(content, list):
        found: dict[Any, Any] = {}
        for pair in content:
            new = isinstance(pair, list) and len(pair) == 2 and is_scalar(pair[0]) and pair[0] not in found
            if not new:
                raise ValueError("its state has an entry that is not a pair of a new key and a value")
            found[pair[0]] = _unflatten(pair[1], tensors)
        return found
    if kind in ("list", "tuple") and isinstance(content, list):
        values = [_unflatten(value, tensors) for value in content]
        return tuple(values) if kind == "tuple" else values
    raise ValueError("its state has a part that is neither a value, a tensor, a dict, a list nor a tuple")


@contextmanager
def of_a_run(path: Path | str) -> Iterator[None]:
    """Name ``path`` in the error if something is wrong with the run that it should hold."""
    try:
        yield
    except ValueError as error:
        problem = str(error)
    except RecursionError:
        problem = "it is nested too deeply"
    else:
        return
    raise ValueError(f"{path}: expected a training checkpoint as fit writes it, but {problem}")


def require(fine: bool, name: str, value: object) -> None:
    """Refuse ``value`` unless it is fine; `of_a_run` says of which file it is."""
    if not fine:
        raise ValueError(f"{name} is {short(value)}")


def is_named(value: object) -> bool:
    """Whether ``value`` is a dictionary whose keys are names."""
    return isinstance(value, dict) and all(isinstance(name, str) for name in value)
