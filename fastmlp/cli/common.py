"""What the commands share: the consoles, an error in a line, JSON, checks of options."""

from __future__ import annotations

import difflib
import json
import math
import re
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NoReturn

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fastmlp import files, starting

if TYPE_CHECKING:
    import torch

#: What a terminal obeys or reorders instead of showing it, and what no encoding has.
_UNSHOWN = re.compile(r"[^\S\n\t ]|[\x00-\x08\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def shown(text: str) -> str:
    """``text``, which a file may have brought, with what is not to be shown as its escapes."""
    return _UNSHOWN.sub(lambda found: ascii(found[0])[1:-1], text)


class _Console(Console):
    """Every text that a command prints comes through here, also a table's cells."""

    def render_str(self, text: str, **options: Any) -> Text:  # type: ignore[override]
        return super().render_str(shown(text), **options)


# No markup: a path or a message may hold brackets.
_console = _Console(highlight=False, soft_wrap=True, markup=False, emoji=False)
errors = _Console(stderr=True, highlight=False, soft_wrap=True, markup=False, emoji=False)

#: How torch says that a size has more than 64 bits.
_TOO_LARGE = (RuntimeError, TypeError, ValueError, OverflowError)


def count_of(number: int, what: str) -> str:
    """``1 epoch``, ``2 epochs``."""
    return f"{number:,} {what}{'s' * (number != 1)}"


def table_of(
    head: Sequence[str], rows: Iterable[Sequence[str]], texts: Collection[str] = (), **options: Any
) -> Table:
    """Rows without lines between them: the first column and ``texts`` to the left, numbers to the right.

    Args:
        head: the columns' names.
        rows: of as many cells.
        texts: columns, by name.
        options: rich's.
    """
    table = Table(*head, box=None, **options)
    for column, name in zip(table.columns[1:], head[1:]):
        column.justify = "left" if name in texts else "right"
    for row in rows:
        table.add_row(*row)
    return table


def start(as_json: bool) -> Console:
    """Where this command's messages go: with --json stdout is the object's alone. Imports torch.

    Of several processes the first one says what all have to say.
    """
    from fastmlp.training import distributed

    starting.done()
    _console.quiet = errors.quiet = distributed.rank() > 0
    return errors if as_json else _console


def emit(found: dict[str, Any]) -> None:
    """The one JSON object."""
    sys.stdout.write(json_of(found))


def json_of(found: dict[str, Any]) -> str:
    """As JSON has it, which knows no NaN and no infinity: null stands for them."""
    return json.dumps(_finite(found), indent=2, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def warn(message: str) -> None:
    """A line that is not the command's result, on stderr."""
    errors.print(message, style="yellow")


def fail(message: str, code: int = 1) -> NoReturn:
    """One line on stderr, and out."""
    errors.print("error: " + message.replace("\n", "\\n"), style="red")
    raise typer.Exit(code)


def plain(message: str) -> str:
    """What typer says of a value, in a line and without its validator's words."""
    words = " ".join(message.split()).rstrip(".").replace("Value error, ", "")
    return words.replace("Input should be ", "expected ")


@contextmanager
def errors_of(file: object) -> Iterator[None]:
    """Say of which ``file`` it is that the machine does not read or write it."""
    try:
        yield
    except OSError as error:
        fail(f"{file}: {error.strerror or error}")


@contextmanager
def memory_for(option: str) -> Iterator[None]:
    """Say which ``option`` and value want more memory than there is."""
    try:
        yield
    except (MemoryError, *_TOO_LARGE) as error:
        failure = what_failed(error)
        if failure is None:
            raise
        fail(f"{option}: {failure}; a smaller one takes less")


def by_option(message: str, options: Collection[str], also: Mapping[str, str] = MappingProxyType({})) -> str:
    """A library's message that begins with its argument's name, with that of the ``options`` instead."""
    name, colon, rest = message.partition(":")
    name = also.get(name, name)
    return f"--{name.replace('_', '-')}:{rest}" if colon and name in options else message


def what_failed(error: BaseException) -> str | None:
    """A line for what no command has foreseen but the machine or a file is to blame for; None for a fault."""
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}" if error.filename is not None else str(error)
    from fastmlp.training.errors import first_line, is_out_of_memory

    first = first_line(error)
    if is_out_of_memory(error) or (isinstance(error, _TOO_LARGE) and "verflow" in first):
        return f"out of memory: {first}"
    return None


def one_of(names: tuple[str, ...], text: str, option: str) -> None:
    """See that an option is one of the ``names``."""
    if text not in names:
        close = difflib.get_close_matches(text, names, 1)
        meant = f"; did you mean {close[0]}?" if close else ""
        fail(f"{option} {text}: expected one of {', '.join(names)}{meant}", 2)


def writable(path: Path, option: str, over_nets: bool = False) -> None:
    """Say before the work that what comes of it cannot be saved, or would take a trained net's place."""
    from fastmlp.training import checkpoint

    with errors_of(f"{option} {path}"):
        if not path.name or path.is_dir():  # of "", "." and "/" there is no name
            fail(f"{option} {path}: a directory")
        files.prepare(path)
        if not over_nets and path.is_file() and checkpoint.is_one(path):
            fail(f"{option} {path}: a trained net is there; expected another name")


def device_of(text: str) -> torch.device:
    """The device that --device names; by default the GPU if there is one."""
    import torch

    from fastmlp.training import distributed

    try:
        device = torch.device(text or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        fail(f"--device {text}: expected cpu, cuda or cuda:1", 2)
    if device.type == "cuda" and distributed.size() > 1:
        if device.index is not None:
            fail(f"--device {text}: expected cpu or cuda, of which each process takes one of its own", 2)
        device = torch.device("cuda", distributed.local_rank())
    count = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        seen = count_of(count, "GPU") if count else "no GPU"
        fail(f"--device {text or device}: torch sees {seen} here", 2)
    return device


def widths_of(text: str, option: str = "--hidden") -> list[int]:
    """Widths with commas between them."""
    try:
        widths = [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        widths = [0]
    if not all(0 < width < 1 << 63 for width in widths):
        fail(f"{option} {text}: expected positive widths with commas between them, such as 512,256", 2)
    return widths
