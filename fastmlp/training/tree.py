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
    if tree is None or isinstance(tree, (bool, int, float, str)):
        return tree
    raise TypeError(f"{name}: a {type(tree).__name__}; a checkpoint holds tensors, numbers and strings")


def unflatten(tree: Any, tensors: dict[str, Tensor]) -> Any:
    """What `flatten` was given."""
    if not isinstance(tree, dict):
        return tree
    ((kind, content),) = tree.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: unflatten(value, tensors) for key, value in content}
    values = [unflatten(value, tensors) for value in content]
    return tuple(values) if kind == "tuple" else values


def _join(name: str, key: object) -> str:
    return f"{name}.{key}" if name else str(key)
