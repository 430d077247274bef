"""A run's options in a TOML file: ``--config`` reads one, and every run writes its own."""

from __future__ import annotations

import difflib
import json
import sys
from pathlib import Path
from typing import Any, get_args, get_type_hints

import typer

import fastmlp
from fastmlp import files
from fastmlp.cli.common import errors_of, fail, plain
from fastmlp.cli.options import Settings

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_HEAD = "# fastmlp "  # that a record begins with
_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a string"}


def read(context: typer.Context, path: Path | None) -> Path | None:
    """Make what ``path`` says the options' defaults; what the command line says comes before them.

    Called by the option --config itself. Keys are the options' names without the dashes in front. A key
    that is none of them, and a value of another type or out of range, end the command by name.
    """
    if path is None or context.resilient_parsing:
        return path
    try:
        with errors_of(f"--config {path}"):
            found = tomllib.loads(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        fail(f"--config {path}: expected TOML in UTF-8", 2)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        fail(f"--config {path}: expected TOML: {error}", 2)
    hints = get_type_hints(Settings)
    names = {name.replace("_", "-"): name for name in hints}
    options = {option.name: option for option in context.command.params}
    for key, value in found.items():
        if key not in names:
            close = difflib.get_close_matches(key, names, 1)
            meant = f"; did you mean {close[0]}?" if close else ", which are: " + ", ".join(names)
            fail(f"--config {path}: {key} is not an option that a file can set{meant}", 2)
        problem = _problem(context, options[names[key]], _kind(hints[names[key]]), value)
        if problem:
            fail(f"--config {path}: {key}: {problem}", 2)
    context.default_map = {names[key]: value for key, value in found.items()}
    return path


def _problem(context: typer.Context, option: Any, kind: type, value: object) -> str | None:
    """Why ``value`` is none of ``option``'s. TOML has types: "3" is not a number, and 1 is not true."""
    accepted = (int, float) if kind is float else kind
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
        return f"expected {_KINDS[kind]}, got {json.dumps(value, default=str)}"
    try:
        option.process_value(context, value)
    except typer.BadParameter as error:  # out of range, or none of a few names
        return plain(error.message)
    return None


def _kind(hint: Any) -> type:
    """What TOML is to hold for an option of that type."""
    kind = next(part for part in get_args(hint) or (hint,) if part is not type(None))
    return kind if kind in _KINDS else str


def is_record(path: Path) -> bool:
    """Whether `write` wrote it; an empty file counts, see `fastmlp.cli.runs`.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        return file.read(len(_HEAD)) in (b"", _HEAD.encode())


def write(path: Path, settings: Settings) -> None:
    """Record a run: ``fastmlp train --config path`` is the same one.

    Raises:
        OSError: it cannot be written.
    """
    import tomli_w
    import torch

    from fastmlp.training import distributed

    processes = distributed.size()
    command = "fastmlp" if processes == 1 else f"torchrun --nproc-per-node={processes} -m fastmlp"
    head = (
        f"{_HEAD}{fastmlp.__version__}, torch {torch.__version__}\n"
        f"# the same run: {command} train --config {path} --out FILE\n"
    )
    files.write(path, (head.encode(), tomli_w.dumps(settings.plain()).encode()))
