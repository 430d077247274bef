"""Training curves, and the live one."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import fastmlp
from fastmlp import plots
from fastmlp.plots import style
from fastmlp.plots.history import _in_notebook, agreement
from fastmlp.training import Epoch, History


def a_run(shift: float = 0.0, count: int = 3, accuracy: float | None = 0.5, tested: bool = True) -> History:
    def epoch(n: int) -> Epoch:
        known = None if accuracy is None else accuracy + n / 10 + shift
        return Epoch(
            number=n,
            train_loss=1 / n + shift,
            train_accuracy=known,
            test_accuracy=known if tested else None,
            seconds=1.0,
            examples_per_second=1.0,
            test_loss=2 / n if tested else None,
        )

    return History([epoch(n) for n in range(1, count + 1)])


def drawn(axis: Any) -> list[list[tuple[float, float]]]:
    return [list(zip(line.get_xdata(), line.get_ydata())) for line in axis.lines]


def test_one_run() -> None:
    run = a_run()
    figure = plots.history(run, title="a title")
    loss, accuracy = figure.axes
    assert drawn(loss) == [
        [(e.number, e.train_loss) for e in run.epochs],
        [(e.number, e.test_loss) for e in run.epochs],
    ]
    assert drawn(accuracy) == [[(e.number, e.train_accuracy) for e in run.epochs]] * 2
    assert [axis.get_ylabel() for axis in figure.axes] == ["loss", "accuracy"]
    assert {axis.get_xlabel() for axis in figure.axes} == {"epoch"}
    assert [text.get_text() for text in accuracy.get_legend().get_texts()] == ["train", "test"]
    assert figure.get_suptitle() == "a title"


def test_several_runs_have_a_colour_each_and_their_names_above() -> None:
    runs = {"wide": a_run(), "narrow": a_run(0.1), "untested": a_run(0.2, tested=False)}
    figure = plots.history(runs)
    loss, accuracy = figure.axes
    assert len(loss.lines) == len(accuracy.lines) == 5
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [*runs]
    train = [line for line in loss.lines if line.get_linestyle() == "--"]
    assert [line.get_color() for line in train] == [style.BLUE, style.ORANGE, style.GREEN]
    test = [line for line in loss.lines if line.get_linestyle() == "-"]
    assert [line.get_color() for line in test] == [style.BLUE, style.ORANGE]
    assert len({line.get_linewidth() for axis in figure.axes for line in axis.lines}) == 1
    many = plots.history({str(i): a_run(i / 10) for i in range(9)}).axes[0]
    assert len({str(line.get_color()) for line in many.lines}) == 9


def test_runs_that_agree_lie_on_thicker_ones() -> None:
    loss, *_ = agreement({name: a_run(i / 1e6) for i, name in enumerate("abc")}).axes
    widths = [line.get_linewidth() for line in loss.lines if line.get_linestyle() == "--"]
    assert widths == sorted(widths, reverse=True)
    assert len({*widths}) == 3


def test_regression_has_no_accuracy() -> None:
    (loss,) = plots.history(a_run(accuracy=None)).axes
    assert loss.get_ylabel() == "loss"


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        ({}, "expected at least one"),
        (History(), "expected epochs in each, got none"),
        ({"a": History()}, "'a'"),
    ],
)
def test_nothing_to_draw(runs: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"runs: .*{message}"):
        plots.history(runs)


def test_agreement_draws_the_differences() -> None:
    figure = agreement({"one": a_run(), "other": a_run(-0.125)}, title="the same?", note="where")
    *_, apart = figure.axes
    (line,) = apart.lines
    assert line.get_ydata() == pytest.approx((0.125, 0.125, 0.125))
    assert apart.get_yscale() == "log"


def test_live_collects_and_shows_nothing_outside_a_notebook(capsys: pytest.CaptureFixture[str]) -> None:
    x, y = torch.randn(60, 4), torch.randint(3, (60,))
    watch = plots.Live(title="a run")
    history = fastmlp.fit(nn.Linear(4, 3), (x, y), (x, y), epochs=2, batch_size=20, on_epoch=watch)
    assert watch.history.epochs == history.epochs
    assert drawn(watch.figure().axes[0]) == drawn(plots.history(history).axes[0])
    assert capsys.readouterr().out == ""


def test_live_in_a_notebook_draws_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """One display, updated after every further epoch."""
    shown: list[tuple[str, int]] = []

    class Handle:
        def update(self, figure: Any) -> None:
            shown.append(("update", len(figure.axes[0].lines[0].get_xdata())))

    def display(figure: Any, display_id: bool) -> Handle:
        assert display_id
        shown.append(("display", len(figure.axes[0].lines[0].get_xdata())))
        return Handle()

    shell = SimpleNamespace(kernel=object())
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(display=display))
    watch = plots.Live()
    for epoch in a_run().epochs:
        watch(epoch)
    assert shown == [("display", 1), ("update", 2), ("update", 3)]


@pytest.mark.parametrize("shell", [None, SimpleNamespace()])
def test_a_terminal_is_no_notebook(shell: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    assert not _in_notebook()
