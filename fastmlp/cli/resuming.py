"""The checkpoint of an earlier run: gone on from, or put aside."""

from __future__ import annotations

import os
from pathlib import Path

from fastmlp.cli.common import fail, warn
from fastmlp.training import Position, position


def place(path: Path, resume: bool) -> Position | None:
    """How far the run is that ``path`` is a checkpoint of and that is to go on; None for a new one.

    An unfinished run's that nobody asks to go on with is put aside, as --resume may be forgotten; and so is
    anything else.
    """
    try:
        found = position(path)
        what = f"{path} is of an unfinished run: {found} of {found.epochs}"
        if resume:
            return found
        if found.finished:
            return None
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        if resume:
            fail(f"--checkpoint {error}")
        what = str(error)
    aside = path.with_name(f"{path.name}.previous")
    os.replace(path, aside)
    warn(f"{what}; moved to {aside}")
    return None
