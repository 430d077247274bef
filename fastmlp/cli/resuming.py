"""The checkpoint of an earlier run: gone on from, or put aside."""

from __future__ import annotations

import json
import os
from collections.abc import Collection
from pathlib import Path

from fastmlp.cli.common import fail, one_of, warn
from fastmlp.cli.options import Optimizer
from fastmlp.cli.runs import vacant
from fastmlp.training import Position, checkpoint, position

#: The options that --changed may name; the last two are not of Adam.
_CHANGEABLE = ("lr", "weight-decay", "schedule", "batch-size", "clip", "patience", "momentum", "nesterov")


def fields_of(changed: Collection[str], optimizer: Optimizer) -> list[str]:
    """What --changed names, as options or as `fit` calls them, by the names that `fit` has for it."""
    names = _CHANGEABLE[: -2 if optimizer in (Optimizer.adam, Optimizer.adamw) else None]
    for name in changed:
        option = name.replace("_", "-")
        one_of(names, "clip" if option == "clip-norm" else option, "--changed")
    return ["clip_norm" if name == "clip" else name.replace("-", "_") for name in changed]


def place(path: Path) -> Position | None:
    """How far the run is that ``path`` is a checkpoint of; None where there is none yet."""
    if os.path.exists(path) and not os.path.isfile(path):  # nothing is kept in a device or a pipe
        return None
    try:
        return position(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        fail(f"--checkpoint {path}: {error.strerror or error}")
    except ValueError as error:
        fail(f"--checkpoint {error}")


def put_aside(path: Path) -> None:
    """Make room for a new run's checkpoint.

    A finished run's is replaced. An unfinished one's is kept under another name, as --resume may have been
    forgotten; and so is anything else that is a file.
    """
    if not os.path.isfile(path):  # a device stays where it is
        return
    try:
        found = position(path)
        if found.finished:
            return
        what = f"{path} is of an unfinished run: {found} of {found.epochs}"
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        what = str(error)
    aside = vacant(path.with_name(f"{path.name}.previous"))
    os.replace(path, aside)
    warn(f"{what}; moved to {aside}")


def is_of(history: Path, kept: Path) -> bool:
    """Whether the run whose checkpoint is ``kept`` goes on from the one that left ``history``.

    Its epochs begin with those, down to the seconds that each of them took.
    """
    try:
        before = json.loads(history.read_text())["epochs"]
        now = checkpoint.read(kept)[1]["epochs"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return bool(before) and now[: len(before)] == before
