"""``fastmlp plot``: the pictures of `fastmlp.plots` and `fastmlp.studies` as files."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option

from fastmlp.cli.common import device_of, emit, errors_of, fail, one_of, start, warn, writable
from fastmlp.cli.options import (
    ACTIVATIONS,
    STUDIES,
    AsJson,
    Data,
    Dataset,
    Device,
    Net,
    OtherDataset,
    Remeasure,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

    from fastmlp.data import Images
    from fastmlp.training import History

EXAMPLE = "Example: fastmlp plot activations && fastmlp plot study width --small"

app = typer.Typer(rich_markup_mode="markdown")


@app.callback(invoke_without_command=True)
def plot(context: typer.Context) -> None:
    """Draw pictures, as PNG, SVG or PDF."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def _out(default: str) -> Any:
    return Option(metavar="FILE", help=f"Ends in .png, .svg or .pdf; default: {default}.")


class _Picture:
    """Where a picture goes, if it can go there and can be drawn at all; and what is said of it."""

    def __init__(self, out: Path | None, default: str, as_json: bool) -> None:
        self.console, self.path, self._as_json = start(as_json), out or Path(default), as_json
        try:
            from fastmlp.plots.save import kind_of

            kind_of(self.path)
        except ImportError as error:
            fail(str(error))
        except ValueError:
            fail(f"--out {self.path}: expected a name that ends in .png, .svg or .pdf", 2)
        writable(self.path, "--out")

    def save(self, figure: Figure, numbers: dict[str, Any], what: str = "") -> None:
        """Write it; with --json its ``numbers`` are the object that is printed."""
        from fastmlp import plots

        with errors_of(f"--out {self.path}"):
            plots.save(figure, self.path)
        self.console.print(f"{what}saved to {self.path}", style="bold")
        if self._as_json:
            emit({"picture": str(self.path), **numbers})


@app.command("activations", epilog="Example: fastmlp plot activations relu gelu silu --out gelu.svg")
def activations(
    names: Annotated[
        list[str] | None,
        Argument(
            metavar="NAME",
            help=f"Some of {', '.join(ACTIVATIONS)}; default: the book's, PReLU, GELU and SiLU.",
        ),
    ] = None,
    device: Device = "",
    out: Annotated[Path | None, _out("activations.png")] = None,
    as_json: AsJson = False,
) -> None:
    """Activations and their gradients, by the kernels' own forward and derivative.

    Where no kernel runs, by the table that they are tested against; the picture says which.
    """
    for name in names or ():
        one_of(ACTIVATIONS, name, "NAME")
    picture, where = _Picture(out, "activations.png", as_json), device_of(device)
    from fastmlp import plots
    from fastmlp.plots.activations import SHOWN, curves

    chosen = tuple(names) if names else SHOWN
    found, source = curves(chosen, device=where)
    numbers = {name: {key: t.tolist() for key, t in each._asdict().items()} for name, each in found.items()}
    picture.save(plots.activations(chosen, device=where), {"by": source, "activations": numbers})


@app.command(
    "curve",
    epilog="Example: fastmlp plot curve runs/digits-1.history.json runs/digits-2.history.json --out a.svg",
)
def curve(
    histories: Annotated[
        list[Path],
        Argument(metavar="HISTORY", help="Files that train saved with --history.", show_default=False),
    ],
    title: Annotated[str, Option(metavar="TEXT", help="Title above the picture.")] = "",
    out: Annotated[Path | None, _out("curve.png")] = None,
    as_json: AsJson = False,
) -> None:
    """The training curve: loss, train and test accuracy by epoch; of several runs in one picture."""
    picture = _Picture(out, "curve.png", as_json)
    from fastmlp import plots
    from fastmlp.plots.history import PANELS, points

    runs = {name: _history(file) for name, file in zip(_labels(histories), histories)}
    try:
        figure = plots.history(runs if len(runs) > 1 else next(iter(runs.values())), title=title)
    except ValueError as error:
        fail(str(error))
    shown = [field for fields in PANELS.values() for field in fields]
    numbers = {name: {field: points(run, field) for field in shown} for name, run in runs.items()}
    picture.save(figure, {"runs": numbers})


@app.command(
    "predictions", epilog="Example: fastmlp plot predictions runs/fashion-mnist-1.safetensors --wrong"
)
def predictions(
    net: Net,
    wrong: Annotated[bool, Option("--wrong", help="Only wrong predictions.")] = False,
    rows: Annotated[int, Option(metavar="N", min=1, help="Rows of the grid.")] = 2,
    columns: Annotated[int, Option(metavar="N", min=1, help="Columns of the grid.")] = 9,
    dataset: OtherDataset = None,
    data: Data = None,
    device: Device = "",
    out: Annotated[Path | None, _out("predictions.png, or mistakes.png")] = None,
    as_json: AsJson = False,
) -> None:
    """Images of the test set with their true labels and what a net takes them for."""
    picture = _Picture(out, "mistakes.png" if wrong else "predictions.png", as_json)
    test, predicted = _predicted(net, dataset, data, device)
    from fastmlp import plots

    shown: Any = {"rows": rows, "columns": columns, "only_wrong": wrong}
    try:
        figure = plots.predictions(test.images, test.labels, predicted, test.classes, **shown)
    except ValueError as error:  # nothing is wrong, or these are no square pictures
        fail(str(error))
    mistakes = (predicted != test.labels).nonzero()[:, 0].tolist()
    examples = [
        {"example": i, "label": test.classes[test.labels[i]], "predicted": test.classes[predicted[i]]}
        for i in (mistakes if wrong else range(len(predicted)))[: rows * columns]
    ]
    picture.save(figure, {"examples": len(predicted), "wrong": len(mistakes), "shown": examples})


@app.command(
    "confusion", epilog="Example: fastmlp plot confusion runs/fashion-mnist-1.safetensors --out confusion.pdf"
)
def confusion(
    net: Net,
    dataset: OtherDataset = None,
    data: Data = None,
    device: Device = "",
    out: Annotated[Path | None, _out("confusion.png")] = None,
    as_json: AsJson = False,
) -> None:
    """The confusion matrix of a net on the test set: a row for each true class, its share as colour."""
    picture = _Picture(out, "confusion.png", as_json)
    test, predicted = _predicted(net, dataset, data, device)
    from fastmlp import plots
    from fastmlp.plots.labelled import matrix

    counts = matrix(test.labels, predicted, len(test.classes)).tolist()
    figure = plots.confusion(test.labels, predicted, test.classes)
    picture.save(figure, {"classes": list(test.classes), "confusion": counts})


@app.command("study", epilog="Example: fastmlp plot study learning-rate --out rates.svg")
def study(
    name: Annotated[
        str,
        Argument(metavar="NAME", help=f"One of {', '.join(STUDIES)}.", autocompletion=lambda: list(STUDIES)),
    ],
    small: Annotated[bool, Option("--small", help="A small study on 2000 examples, in seconds.")] = False,
    data: Annotated[
        Path | None,
        Option(
            metavar="DIR",
            help="Folder with FashionMNIST/raw; default: download, or, with --small, synthetic.",
        ),
    ] = None,
    device: Device = "",
    out: Annotated[Path | None, _out("NAME.png")] = None,
    as_json: AsJson = False,
) -> None:
    """Run one of the chapter's exercises, print its table and draw it. Without --small it takes minutes."""
    name = name.replace("_", "-")
    one_of(STUDIES, name, "NAME")
    picture, where = _Picture(out, f"{name}.png", as_json), device_of(device)
    from fastmlp import studies
    from fastmlp.data import DataError

    run = studies.STUDIES[name.replace("-", "_")]
    try:
        found = run(small=small, data=data, device=where, say=warn)
    except DataError as error:
        fail(str(error))
    except ValueError as error:  # a study that reads no data was given some
        fail(f"--{error}", 2)
    picture.console.print(f"{found.question}\n\n{found.table()}\n\n{found.caption()}")
    picture.save(found.plot(), found.to_dict())


@app.command("roofline", epilog="Example: fastmlp plot roofline --out roofline.svg")
def roofline(
    out: Annotated[Path, Option(metavar="FILE", help="A .png, .svg or .pdf.")] = Path("roofline.png"),
    device: Device = "",
    remeasure: Remeasure = False,
    as_json: AsJson = False,
) -> None:
    """Our kernels under what this device reaches, in float32 and bfloat16.

    Every kernel of a training step of two nets, and a cross-entropy, by its operations a byte: under the
    slope it is bound by memory, under the flat roof by the products; how far below is what is left to gain.
    """
    picture, where = _Picture(out, "", as_json), device_of(device)
    from fastmlp import plots
    from fastmlp.cli import workload
    from fastmlp.costs.ceilings import ceilings_of, device_name

    with workload.on(where):
        ceilings = ceilings_of(where, again=remeasure)
        points = [*workload.roofline(where, ceilings)]
    figure = plots.roofline(points, ceilings, note=workload.roofline_note(where, ceilings))
    numbers = {
        "device": device_name(where),
        "points": [point._asdict() for point in points],
        "ceilings": ceilings.json(),
    }
    picture.save(figure, numbers, f"{len(points)} kernels; ")
    workload.say_ceilings(picture.console, ceilings)


def _labels(paths: list[Path]) -> list[str]:
    """The files' names without endings, or, of those that share one, their paths."""
    stems = [path.name.removesuffix(".json").removesuffix(".history") for path in paths]
    labels = [stem if stems.count(stem) == 1 else str(path) for stem, path in zip(stems, paths)]
    for label, count in Counter(labels).items():
        if count > 1:
            fail(f"{label}: given {count} times", 2)
    return labels


def _history(path: Path) -> History:
    from fastmlp.training import History

    try:
        with errors_of(path):
            return History.from_json(path.read_text())
    except (ValueError, RecursionError):
        fail(f"{path}: expected a history, as train saves it with --history")


def _predicted(net: Path, dataset: Dataset | None, data: Path | None, device: str) -> tuple[Images, Tensor]:
    """The test set of images, and the class of each by ``net``, on the CPU."""
    import torch

    from fastmlp.cli import nets, sets
    from fastmlp.data import Images

    where = device_of(device)
    model, about = nets.opened(net, where)
    test = sets.test_of(about, dataset, data)
    if not isinstance(test, Images):
        fail(f"{net}: a regression; expected a net for classes")
    x, _ = sets.pair(test)
    return test, nets.outputs(model, x, 4096, torch.float32).argmax(1).cpu()
