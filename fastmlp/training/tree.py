"""Nested dictionaries and lists that hold tensors, as JSON beside a flat dictionary of the tensors."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def flatten(tree: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """``tree`` as what JSON can hold, each tensor put into ``tensors`` under its path.

    Raises:
        TypeError: something else than tensors, numbers, strings, None, and dicts, lists and tuples of them.
    """
    if isinstance(tree, Tensor):
        while name in tensors:  # {"a": {"b": 0}, "a.b": 0}
            name += "'"
        tensors[name] = tree
        return {"tensor": name}
    if isinstance(tree, dict):
        return {"dict": [[key, flatten(value, _join(name, key), tensors)] for key, value in tree.items()]}
    if isinstance(tree, (list, tuple)):
        kind = "tuple" if isinstance(tree, tuple) else "list"
        return {kind: [flatten(value, _join(name, i), tensors) for i, value in enumerate(tree)]}
    if _is_plain(tree):
        return tree
    raise TypeError(f"{name}: a {type(tree).__name__}; a checkpoint holds tensors, numbers and strings")


def unflatten(tree: Any, tensors: dict[str, Tensor]) -> Any:
    """What `flatten` was given.

    Raises:
        ValueError: these are nothing that `flatten` gives.
    """
    left = dict(tensors)
    try:
        found = _unflatten(tree, left)
    except RecursionError:
        raise ValueError("its state is nested too deeply") from None
    if left:
        raise ValueError(f"its state has no place for {next(iter(left))!r}")
    return found


def _unflatten(tree: Any, tensors: dict[str, Tensor]) -> Any:
    """`unflatten`, which takes each tensor out of ``tensors``: two places would be written as one."""
    if _is_plain(tree):
        return tree
    kind, content = next(iter(tree.items())) if isinstance(tree, dict) and len(tree) == 1 else ("", None)
    if kind == "tensor" and isinstance(content, str):
        if content not in tensors:
            raise ValueError(f"there is no tensor {content!r}, or it stands in two places")
        return tensors.pop(content)
    if kind == "dict" and isinstance(content, list):
        found: dict[Any, Any] = {}
        for pair in content:
            new = isinstance(pair, list) and len(pair) == 2 and _is_plain(pair[0]) and pair[0] not in found
            if not new:
                raise ValueError("its state has an entry that is no pair of a new key and a value")
            found[pair[0]] = _unflatten(pair[1], tensors)
        return found
    if kind in ("list", "tuple") and isinstance(content, list):
        values = [_unflatten(value, tensors) for value in content]
        return tuple(values) if kind == "tuple" else values
    raise ValueError("its state has a part that is neither a value, a tensor, a dict, a list nor a tuple")


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, (bool, int, float, str))


def _join(name: str, key: object) -> str:
    return f"{name}.{key}" if name else str(key)
