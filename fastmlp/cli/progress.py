"""The progress of a training: live on a terminal, a line an epoch anywhere, a notebook too."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from dataclasses import replace
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Column
from rich.text import Text

from fastmlp.cli.common import warn
from fastmlp.training import Epoch, Position


class Live:
    """Between `fit` and a terminal: its ``on_batch`` and ``on_epoch``, as a context.

    The loss and the accuracy are the last epoch's. Those of the epoch that runs add up on the device, and
    nobody waits for it.

    Args:
        console: where it is shown.
        count: examples of an epoch.
        epochs: of the whole run.
        done: where it goes on.
        batch_size: examples of a step.
    """

    def __init__(
        self, console: Console, count: int, epochs: int, done: Position | None, batch_size: int
    ) -> None:
        width = len(f"{count:,}")
        columns = [
            _Words(lambda task: f"epoch {min(int(task.completed) // count + 1, epochs)}/{epochs}"),
            BarColumn(bar_width=16),
            _Words(lambda task: f"{int(task.completed) % count:{width},}/{count:,}"),
            TextColumn("{task.fields[last]}"),
            # The last epoch's; in the first one the host's.
            _Words(lambda task: f"{task.fields['rate'] or task.speed or 0:,.0f} examples/s"),
            TimeRemainingColumn(),
        ]
        if console.width < 100:  # the numbers are what matters
            del columns[1]
        self._console = console
        self._progress = Progress(*columns, console=console, transient=True, disable=not redraws(console))
        past = done.epoch * count + done.step * batch_size if done else 0
        self._task = self._progress.add_task("", total=count * epochs, completed=past, last="", rate=None)

    def on_batch(self, examples: int) -> None:
        """So many more are on their way."""
        self._progress.advance(self._task, examples)

    def on_epoch(self, epoch: Epoch) -> None:
        """A line, and the numbers beside the bar."""
        accuracy = epoch.train_accuracy if epoch.test_accuracy is None else epoch.test_accuracy
        last = f"loss {epoch.train_loss:.4f}" + ("" if accuracy is None else f" accuracy {accuracy:.4f}")
        self._progress.update(self._task, last=last, rate=epoch.examples_per_second)
        told = epoch if epoch.test_accuracy is None else replace(epoch, test_loss=None)  # a line's width
        self._console.print(str(told))

    def __enter__(self) -> Live:
        self._warnings = warnings.catch_warnings()
        self._warnings.__enter__()
        warnings.showwarning = lambda message, *_, **__: warn(str(message))
        self._progress.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.__exit__(kind, error, trace)
        self._warnings.__exit__(kind, error, trace)


def redraws(console: Console) -> bool:
    """Whether a line that is written can be drawn anew: on a terminal that knows how, and no notebook's."""
    return console.is_interactive and console.file.isatty() and not _from_notebook()


def _from_notebook() -> bool:
    """Whether a Jupyter kernel started this, as a notebook's ``!fastmlp`` does.

    That gives it a terminal, but what is written there goes to a cell, where codes that move the cursor are
    shown or pile up. The first name is set by whoever starts a kernel, the others by ipykernel itself.
    """
    told = os.environ.get
    return "JPY_PARENT_PID" in os.environ or (told("TERM"), told("CLICOLOR_FORCE")) == ("xterm-color", "1")


class _Words(ProgressColumn):
    """What a function says of the task, on one line."""

    def __init__(self, words: Callable[[Task], str]) -> None:
        super().__init__(Column(no_wrap=True))
        self._words = words

    def render(self, task: Task) -> Text:
        return Text(self._words(task))
