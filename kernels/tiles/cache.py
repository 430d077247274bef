"""Small JSON files in the user's cache directory: what was measured on this machine."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from fastmlp import files as atomic

T = TypeVar("T")


def path(name: str) -> Path:
    """Where ``name`` is kept: in ``FASTMLP_CACHE_DIR``, by default ``~/.cache/fastmlp``."""
    root = os.environ.get("FASTMLP_CACHE_DIR") or Path.home() / ".cache" / "fastmlp"
    return Path(root) / name


def read(name: str) -> dict[str, Any]:
    """What is kept; empty if there is nothing, and, with a warning, if the file is damaged."""
    try:
        data = path(name).read_bytes()
    except OSError:
        return {}
    try:
        found = json.loads(data.decode())
        if isinstance(found, dict):
            return found
        problem: object = f"a {type(found).__name__}"
    except (ValueError, RecursionError) as error:
        problem = error
    warnings.warn(f"{path(name)}: ignored, not a JSON object ({problem}); delete it", stacklevel=3)
    return {}


def parsed(entries: dict[str, Any], parse: Callable[[str, Any], T], what: str, file: Path) -> dict[str, T]:
    """``entries`` of ``file`` by ``parse(key, entry)``; those that it refuses are left out, with a warning.

    Args:
        entries: as `read` gives them, whatever they hold.
        parse: refuses an entry by any error of a lookup, a type or a value.
        what: what each should be, such as "a measurement".
        file: for the warning.
    """
    found = {}
    for key, entry in entries.items():
        try:
            found[key] = parse(key, entry)
        except (AttributeError, LookupError, TypeError, ValueError, ArithmeticError) as error:
            warnings.warn(f"{file}: ignored {key!r}, not {what} ({error}); delete it", stacklevel=3)
    return found


def update(name: str, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Path:
    """Keep what ``change`` makes of what is kept, which nobody else can change meanwhile.

    Raises:
        OSError: the file cannot be written.
    """
    file = path(name)
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic.locked(file.with_name(f"{name}.lock")):
        entries = json.dumps(change(read(name)), indent=1, sort_keys=True)
        atomic.write(file, [entries.encode()])
    return file


def add(name: str, entries: dict[str, Any]) -> Path:
    """Add ``entries`` to what is kept.

    Raises:
        OSError: as `update`.
    """
    return update(name, lambda kept: kept | entries)
