"""Names of runs that were given none: runs/DATASET-N.safetensors, where N is theirs alone."""

from __future__ import annotations

import contextlib
import itertools
import re
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fastmlp.cli.common import fail
from fastmlp.cli.options import Settings
from fastmlp.training import distributed, position

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FOLDER = Path("runs")
#: What may differ between a run and what goes on from it: where it is put, how long it takes.
_FREE = ("out", "history", "tensorboard", "epochs", "every")


def beside(out: Path, ending: str) -> Path:
    """The file of the run ``out`` with that ending in the place of its own; .5 of v1.5 is none."""
    name = out.name if re.fullmatch(r"\.\d.*", out.suffix) else out.stem
    return out.parent / f"{name}{ending}"


def vacant(path: Path) -> Path:
    """``path`` if nothing is there, else the first of NAME-2, NAME-3, ... of which that is true."""
    others = (path.with_name(f"{path.stem}-{n}{path.suffix}") for n in itertools.count(2))
    return next(found for found in itertools.chain([path], others) if not found.exists())


@contextmanager
def named(settings: Settings, resume: bool, changed: Collection[str]) -> Iterator[Path]:
    """Where this run's net goes if --out does not say it: the same in all processes.

    A new run takes the next number, by an empty file of its options, which is removed if it never begins. One
    that is resumed has its own: the last of the same options that is not done, else the last one.
    """
    out = distributed.first(_find, settings, resume, changed)
    try:
        yield out
    finally:
        claim = beside(out, ".toml")
        with contextlib.suppress(OSError):
            if settings.out is None and distributed.rank() == 0 and claim.stat().st_size == 0:
                claim.unlink()


def _find(settings: Settings, resume: bool, changed: Collection[str]) -> Path:
    if settings.out is not None:
        return settings.out
    name = settings.dataset.value
    earlier = [_path(name, number) for number in sorted(_numbers(name))]
    return (_resumed(settings, earlier, changed) if resume else None) or _claimed(name)


def _path(name: str, number: int) -> Path:
    return FOLDER / f"{name}-{number}.safetensors"


def _numbers(name: str) -> set[int]:
    pattern = re.compile(rf"{re.escape(name)}-(\d+)\..+")
    try:
        found = [pattern.fullmatch(path.name) for path in FOLDER.iterdir()]
    except OSError:  # none yet
        return set()
    return {int(match[1]) for match in found if match}


def _claimed(name: str) -> Path:
    """The next number's, now taken from all others."""
    try:
        FOLDER.mkdir(exist_ok=True)
        for number in itertools.count(max(_numbers(name), default=0) + 1):
            path = _path(name, number)
            with contextlib.suppress(FileExistsError), beside(path, ".toml").open("x"):
                return path
    except OSError as error:
        fail(f"{FOLDER}: {error.strerror or error}; --out FILE puts the run elsewhere")
    raise AssertionError("numbers do not end")


def _resumed(settings: Settings, earlier: list[Path], changed: Collection[str]) -> Path | None:
    """Which of these runs, from the first to the last, is to go on; None where none has a checkpoint."""
    free = {*_FREE, *(name.replace("_", "-").replace("clip-norm", "clip") for name in changed)}
    kept = {path: settings.checkpoint or beside(path, ".ckpt.safetensors") for path in earlier}
    found = [path for path in reversed(earlier) if kept[path].exists()]
    same = [path for path in found if _options(path, free) == _without(settings.plain(), free)] or found
    return next((path for path in same if _is_left(kept[path], settings.epochs)), same[0] if same else None)


def _options(path: Path, free: Collection[str]) -> dict[str, Any] | None:
    """Those that the run recorded."""
    try:
        return _without(tomllib.loads(beside(path, ".toml").read_text()), free)
    except (OSError, ValueError):
        return None


def _without(options: dict[str, Any], free: Collection[str]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name not in free}


def _is_left(kept: Path, epochs: int) -> bool:
    """Whether a run has epochs to go; one whose checkpoint is damaged is not passed over."""
    try:
        return position(kept).epoch < epochs
    except (OSError, ValueError):
        return True
