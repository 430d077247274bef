"""``fastmlp plot``: the pictures of `fastmlp.plots` and `fastmlp.studies` as files."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
import typer
from rich.console import Console
from torch import Tensor

from fastmlp import activations as table
from fastmlp.cli import nets, sets
from fastmlp.cli.common import (
    DATA_HELP,
    DATASET_HELP,
    DEVICE_HELP,
    JSON_HELP,
    NET_HELP,
    Dataset,
    device_of,
    emit,
    fail,
    one_of,
    start,
    warn,
    writable,
)
from fastmlp.data import DataError, Images
from fastmlp.studies import STUDIES
from fastmlp.training import History

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EXAMPLE = "Example: fastmlp plot activations && fastmlp plot study width --small"
_NAMES = tuple(name.replace("_", "-") for name in STUDIES)

app = typer.Typer(rich_markup_mode="markdown")


@app.callback(invoke_without_command=True)
def plot(context: typer.Context) -> None:
    """Draw pictures, as PNG, SVG or PDF."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def _out(default: str) -> Any:
    return typer.Option(metavar="FILE", help=f"Ends in .png, .svg or .pdf; default: {default}.")


_NAMES_GIVEN = typer.Argument(
    metavar="NAME", help=f"Of {', '.join(table.NAMES)}; default: the book's, PReLU, GELU and SiLU."
)
_JSON = typer.Option(False, "--json", help=JSON_HELP)
_DEVICE = typer.Option("", metavar="NAME", help=DEVICE_HELP)
_NET = typer.Argument(..., metavar="NET", help=NET_HELP, show_default=False)
_DATASET = typer.Option(None, metavar="NAME", help=DATASET_HELP)
_DATA = typer.Option(None, metavar="DIR", help=DATA_HELP)


@app.command("activations", epilog="Example: fastmlp plot activations relu gelu silu --out gelu.svg")
def activations(
    names: Annotated[list[str] | None, _NAMES_GIVEN] = None,
    device: str = _DEVICE,
    out: Annotated[Path | None, _out("activations.png")] = None,
    as_json: bool = _JSON,
) -> None:
    """Activations and their gradients, by the kernels' own forward and derivative.

    Where no kernel runs, by the table that they are tested against; the picture says which.
    """
    for name in names or ():
        one_of(table.NAMES, name, "NAME")
    console, path, where = start(as_json), _target(out, "activations.png"), device_of(device)
    from fastmlp import plots
    from fastmlp.plots.activations import SHOWN, curves

    chosen = tuple(names) if names else SHOWN
    _save(plots.activations(chosen, device=where), path, console)
    if as_json:
        found, source = curves(chosen, device=where)
        numbers = {
            name: {key: t.tolist() for key, t in each._asdict().items()} for name, each in found.items()
        }
        emit({"picture": str(path), "by": source, "activations": numbers})


@app.command(
    "curve",
    epilog="Example: fastmlp plot curve runs/digits-1.history.json runs/digits-2.history.json --out a.svg",
)
def curve(
    histories: list[Path] = typer.Argument(
        ..., metavar="HISTORY", help="Files that train saved, by --history.", show_default=False
    ),
    title: str = typer.Option("", metavar="TEXT", help="Above the picture."),
    out: Annotated[Path | None, _out("curve.png")] = None,
    as_json: bool = _JSON,
) -> None:
    """The training curve: loss, train and test accuracy by epoch; of several runs in one picture."""
    console, path = start(as_json), _target(out, "curve.png")
    from fastmlp import plots
    from fastmlp.plots.history import PANELS, points

    runs = {name: _history(file) for name, file in zip(_labels(histories), histories)}
    try:
        figure = plots.history(runs if len(runs) > 1 else next(iter(runs.values())), title=title)
    except ValueError as error:
        fail(str(error))
    _save(figure, path, console)
    if as_json:
        numbers = {
            name: {field: points(run, field) for fields in PANELS.values() for field in fields}
            for name, run in runs.items()
        }
        emit({"picture": str(path), "runs": numbers})


@app.command(
    "predictions", epilog="Example: fastmlp plot predictions runs/fashion-mnist-1.safetensors --wrong"
)
def predictions(
    net: Path = _NET,
    wrong: bool = typer.Option(False, "--wrong", help="Only those that are wrong."),
    rows: int = typer.Option(2, metavar="N", min=1, help="Of the grid."),
    columns: int = typer.Option(9, metavar="N", min=1, help="Of the grid."),
    dataset: Dataset | None = _DATASET,
    data: Path | None = _DATA,
    device: str = _DEVICE,
    out: Annotated[Path | None, _out("predictions.png, or mistakes.png")] = None,
    as_json: bool = _JSON,
) -> None:
    """Images of the test set with their true labels and what a net takes them for."""
    console, path = start(as_json), _target(out, "mistakes.png" if wrong else "predictions.png")
    test, predicted = _predicted(net, dataset, data, device)
    from fastmlp import plots

    shown: Any = {"rows": rows, "columns": columns, "only_wrong": wrong}
    try:
        figure = plots.predictions(test.images, test.labels, predicted, test.classes, **shown)
    except ValueError as error:  # nothing is wrong, or these are no square pictures
        fail(str(error))
    _save(figure, path, console)
    if as_json:
        mistakes = (predicted != test.labels).nonzero()[:, 0]
        listed = mistakes if wrong else torch.arange(len(predicted), device="cpu")
        examples = [
            {"example": i, "label": test.classes[test.labels[i]], "predicted": test.classes[predicted[i]]}
            for i in listed[: rows * columns].tolist()
        ]
        emit({"picture": str(path), "examples": len(predicted), "wrong": len(mistakes), "shown": examples})


@app.command(
    "confusion", epilog="Example: fastmlp plot confusion runs/fashion-mnist-1.safetensors --out confusion.pdf"
)
def confusion(
    net: Path = _NET,
    dataset: Dataset | None = _DATASET,
    data: Path | None = _DATA,
    device: str = _DEVICE,
    out: Annotated[Path | None, _out("confusion.png")] = None,
    as_json: bool = _JSON,
) -> None:
    """The confusion matrix of a net on the test set: a row for each true class, its share as colour."""
    console, path = start(as_json), _target(out, "confusion.png")
    test, predicted = _predicted(net, dataset, data, device)
    from fastmlp import plots
    from fastmlp.plots.confusion import matrix

    _save(plots.confusion(test.labels, predicted, test.classes), path, console)
    if as_json:
        counts = matrix(test.labels, predicted, len(test.classes)).tolist()
        emit({"picture": str(path), "classes": list(test.classes), "confusion": counts})


@app.command("study", epilog="Example: fastmlp plot study learning-rate --out rates.svg")
def study(
    name: str = typer.Argument(
        ..., metavar="NAME", help=f"One of {', '.join(_NAMES)}.", autocompletion=lambda: list(_NAMES)
    ),
    small: bool = typer.Option(False, "--small", help="In seconds, on 2000 examples."),
    data: Path | None = typer.Option(
        None, metavar="DIR", help="Holds FashionMNIST/raw; default: download, or, with --small, synthetic."
    ),
    device: str = _DEVICE,
    out: Annotated[Path | None, _out("NAME.png")] = None,
    as_json: bool = _JSON,
) -> None:
    """Run one of the chapter's exercises, print its table and draw it. Without --small it takes minutes."""
    name = name.replace("_", "-")
    one_of(_NAMES, name, "NAME")
    console, path, where = start(as_json), _target(out, f"{name}.png"), device_of(device)
    run = STUDIES[name.replace("-", "_")]
    try:
        found = run(small=small, data=data, device=where, say=warn)
    except DataError as error:
        fail(str(error))
    except ValueError as error:  # a study that reads no data was given some
        fail(f"--{error}", 2)
    console.print(f"{found.question}\n\n{found.table()}\n\n{found.caption()}")
    _save(found.plot(), path, console)
    if as_json:
        emit({"picture": str(path), **found.to_dict()})


def _target(out: Path | None, default: str) -> Path:
    """Where the picture goes, if it can go there and can be drawn at all."""
    path = out or Path(default)
    try:
        from fastmlp.plots.save import kind_of

        kind_of(path)
    except ImportError as error:
        fail(str(error))
    except ValueError:
        fail(f"--out {path}: expected a name that ends in .png, .svg or .pdf", 2)
    writable(path, "--out")
    return path


def _save(figure: Figure, path: Path, console: Console) -> None:
    from fastmlp import plots

    try:
        plots.save(figure, path)
    except OSError as error:
        fail(f"--out {path}: {error.strerror or error}")
    console.print(f"saved to {path}", style="bold")


def _labels(paths: list[Path]) -> list[str]:
    """The files' names without endings, or, of those that share one, their paths."""
    stems = [path.name.removesuffix(".json").removesuffix(".history") for path in paths]
    labels = [stem if stems.count(stem) == 1 else str(path) for stem, path in zip(stems, paths)]
    for label, count in Counter(labels).items():
        if count > 1:
            fail(f"{label}: given {count} times", 2)
    return labels


def _history(path: Path) -> History:
    try:
        return History.from_json(path.read_text())
    except OSError as error:
        fail(f"{path}: {error.strerror or error}")
    except (ValueError, RecursionError):
        fail(f"{path}: expected a history, as train saves it with --history")


def _predicted(net: Path, dataset: Dataset | None, data: Path | None, device: str) -> tuple[Images, Tensor]:
    """The test set of images, and the class of each by ``net``, on the CPU."""
    where = device_of(device)
    model, about = nets.opened(net, where)
    test = sets.test_of(about, dataset, data)
    if not isinstance(test, Images):
        fail(f"{net}: a regression; expected a net for classes")
    x, _ = sets.pair(test)
    return test, nets.outputs(model, x, 4096, torch.float32).argmax(1).cpu()
