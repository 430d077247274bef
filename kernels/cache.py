"""Small JSON files in the user's cache directory: what was measured on this machine."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path
from typing import Any


def path(name: str) -> Path:
    """Where ``name`` is kept: in ``FASTMLP_CACHE_DIR``, by default ``~/.cache/fastmlp``."""
    root = os.environ.get("FASTMLP_CACHE_DIR") or Path.home() / ".cache" / "fastmlp"
    return Path(root) / name


def read(name: str) -> dict[str, Any]:
    """What is kept; empty where there is nothing, and, with a warning, where the file is damaged."""
    try:
        text = path(name).read_text()
    except OSError:
        return {}
    try:
        found = json.loads(text)
        if isinstance(found, dict):
            return found
        problem: object = f"a {type(found).__name__}"
    except ValueError as error:
        problem = error
    warnings.warn(f"{path(name)}: ignored, not a JSON object ({problem}); delete it", stacklevel=3)
    return {}


def write(name: str, entries: dict[str, Any]) -> Path:
    """Keep ``entries`` and nothing else, atomically."""
    file = path(name)
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_suffix(f".{os.getpid()}")
    temporary.write_text(json.dumps(entries, indent=1, sort_keys=True))
    temporary.replace(file)
    return file


def add(name: str, entries: dict[str, Any]) -> Path:
    """Add ``entries`` to what is kept."""
    return write(name, read(name) | entries)
