"""The live progress, drawn into a terminal that is a string."""

from __future__ import annotations

import io
import re
import warnings
from dataclasses import replace

import pytest
from rich.console import Console

from fastmlp.cli.progress import Live
from fastmlp.training import Epoch, Position


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _no_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the tests run in."""
    for name in ("JPY_PARENT_PID", "CLICOLOR_FORCE"):
        monkeypatch.delenv(name, raising=False)


def terminal(width: int, live: bool = True) -> Console:
    return Console(
        file=Screen() if live else io.StringIO(),
        force_terminal=live,
        width=width,
        color_system=None,
        soft_wrap=True,
    )


def shown(live: Live, width: int) -> str:
    """The bar as it stands."""
    screen = Console(file=io.StringIO(), width=width)
    screen.print(live._progress.get_renderable())
    return screen.file.getvalue().rstrip("\n")  # type: ignore[attr-defined]


EPOCH = Epoch(1, 0.43216, 0.81, 0.85126, 2.0, 134567.8, 0.5)


@pytest.mark.parametrize("width", [100, 80])
def test_a_line_that_fits(width: int) -> None:
    """Epoch, loss, accuracy, examples a second, and how long still."""
    with Live(terminal(width), 60_000, 12, Position(9, 0, 12, 235), 256) as live:
        for _ in range(48):
            live.on_batch(256)
        assert shown(live, width).startswith("epoch 10/12 ")
        live.on_epoch(EPOCH)
        for _ in range(187 + 20):
            live.on_batch(256)
        line = shown(live, width)
    assert "\n" not in line
    assert line.startswith("epoch 11/12 ")
    for words in ("5,280/60,000", "loss 0.4322", "accuracy 0.8513", "134,568 examples/s"):
        assert words in line
    assert re.search(r" \d:\d\d:\d\d$", line)


def test_a_line_an_epoch(capsys: pytest.CaptureFixture[str]) -> None:
    """Anywhere; and with no terminal nothing else."""
    console = terminal(100, live=False)
    with Live(console, 10, 2, None, 5) as live:
        live.on_batch(5)
        live.on_epoch(EPOCH)
        warnings.warn("disk full", stacklevel=1)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert (
        text
        == "epoch   1  train loss 0.4322  train accuracy 0.8100  test accuracy 0.8513  134,568 examples/s\n"
    )
    assert capsys.readouterr().err == "disk full\n"


def test_of_a_regression_there_is_no_accuracy() -> None:
    with Live(terminal(100), 10, 2, None, 5) as live:
        live.on_epoch(Epoch(1, 0.5, None, None, 1.0, 10.0, 0.25))
        line = shown(live, 100)
    assert "loss 0.5000 " in line
    assert "accuracy" not in line


def test_where_it_goes_on() -> None:
    with Live(terminal(100), 100, 4, Position(2, 3, 4, 10), 10) as live:
        assert "epoch 3/4" in shown(live, 100)
        assert " 30/100" in shown(live, 100)


@pytest.mark.parametrize(
    "environment",
    [{"JPY_PARENT_PID": "1"}, {"TERM": "xterm-color", "CLICOLOR_FORCE": "1"}, {"TERM": "dumb"}],
    ids=["a notebook", "ipykernel", "dumb"],
)
def test_no_cursor_is_moved(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """In a notebook ``!fastmlp train`` has a terminal, and its cell shows what is written to it as it is."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    console = terminal(100)
    with Live(console, 10, 1, None, 5) as live:
        live.on_batch(10)
        live.on_epoch(EPOCH)
    assert console.file.getvalue() == f"{replace(EPOCH, test_loss=None)}\n"  # type: ignore[attr-defined]


def test_colours_that_are_asked_for_are_no_terminal() -> None:
    """``FORCE_COLOR=1``, as ipykernel sets it, makes rich take a pipe for one."""
    pipe = Console(file=io.StringIO(), width=100, _environ={"FORCE_COLOR": "1"})
    assert pipe.is_terminal
    with Live(pipe, 10, 1, None, 5) as live:
        live.on_batch(10)
    assert pipe.file.getvalue() == ""  # type: ignore[attr-defined]
