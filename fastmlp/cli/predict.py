"""``fastmlp predict``."""

from __future__ import annotations

import csv
import io
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from rich.table import Table
from typer import Option

from fastmlp import files
from fastmlp.cli.common import (
    device_of,
    emit,
    errors_of,
    fail,
    json_of,
    memory_for,
    start,
    table_of,
    writable,
)
from fastmlp.cli.options import (
    DATA_HELP,
    DATASET_HELP,
    AsJson,
    BatchSize,
    Dataset,
    Device,
    Dtype,
    Net,
    Products,
)

if TYPE_CHECKING:
    from torch import Tensor

    from fastmlp.cli.sets import Set

EXAMPLE = """Example: fastmlp predict runs/fashion-mnist-1.safetensors --index 0,5,9

fastmlp predict runs/fashion-mnist-1.safetensors --image boot.png --invert --json"""

_test = partial(Option, rich_help_panel="Of the test set")
_own = partial(Option, rich_help_panel="Of yours")


def predict(
    net: Net,
    index: Annotated[str, _test(metavar="0,5,9", help="These examples.")] = "",
    count: Annotated[int | None, _test(metavar="N", min=1, help="The first N examples; default: 10.")] = None,
    dataset: Annotated[Dataset | None, _test(metavar="NAME", help=DATASET_HELP)] = None,
    data: Annotated[Path | None, _test(metavar="DIR", help=DATA_HELP)] = None,
    image: Annotated[
        list[Path] | None,
        _own(metavar="FILE", help="A picture, which is made grey and scaled to the net's size; repeatable."),
    ] = None,
    invert: Annotated[
        bool,
        _own("--invert", help="Invert the pictures: they are dark on white, the data is bright on black."),
    ] = False,
    array: Annotated[
        Path | None,
        _own("--input", metavar="FILE", help="Rows of numbers: .npy, .pt or .safetensors."),
    ] = None,
    top: Annotated[int, Option(metavar="K", min=1, help="How many of the likeliest classes to show.")] = 3,
    batch_size: BatchSize = 4096,
    device: Device = "",
    dtype: Products = Dtype.float32,
    out: Annotated[
        Path | None, Option(metavar="FILE", help="Save the predictions, as .json or .csv.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Predict by a net that train saved: examples of its test set, pictures, or rows of numbers.

    Numbers are taken as in training: uint8 as pixels from 0 to 255, floats as they are.
    """
    console = start(as_json)
    sources = {"--index": index, "--count": count, "--image": image, "--input": array}
    given = [option for option, value in sources.items() if value]
    if len(given) > 1:
        fail(f"{given[0]}, {given[1]}: expected one of them", 2)
    if invert and not image:
        fail("--invert: expected --image with it", 2)
    if (image or array) and (dataset or data):
        fail(f"--dataset, --data: they say nothing of {given[0]}", 2)
    if out is not None:
        if out.suffix not in (".json", ".csv"):
            fail(f"--out {out}: expected a name that ends in .json or .csv", 2)
        writable(out, "--out")

    from fastmlp.cli import nets, sets

    where = device_of(device)
    model, about = nets.opened(net, where)
    if image or array:
        examples = _of_files(image or [], invert, array, about["widths"][0])
    else:
        examples = _of_test_set(index, count or 10, sets.test_of(about, dataset, data))
    with memory_for(f"--batch-size {batch_size}"):
        outputs = nets.outputs(model, examples.x.to(where), batch_size, dtype.torch).cpu()
    _check_outputs(outputs, examples)
    classes = about["classes"]
    rows = classified(examples, outputs, classes, top) if classes else regressed(examples, outputs)
    found = {"net": str(net), "device": str(where), "dtype": dtype.value, "predictions": rows}
    console.print(_table(rows))
    known = [row["right"] for row in rows if "right" in row]
    if known:
        console.print(f"{sum(known)} of {len(known)} right")
    if out is not None:
        text = json_of(found) if out.suffix == ".json" else csv_of(rows)
        with errors_of(f"--out {out}"):
            files.write(out, [text.encode()])
        console.print(f"saved to {out}")
    if as_json:
        emit(found)


class Examples(NamedTuple):
    """What is to be predicted."""

    names: list[Any]  # an index or a file
    x: Tensor  # (N, features)
    truth: Tensor | None  # labels (N,) or targets (N, out)


def _of_files(image: list[Path], invert: bool, array: Path | None, features: int) -> Examples:
    import torch

    from fastmlp.cli import inputs

    try:
        if array is not None:
            rows = inputs.array(array, features)
            return Examples([*range(len(rows))], rows, None)
        pictures = torch.stack([inputs.picture(path, features, invert) for path in image])
    except inputs.InputError as error:
        fail(f"{'--input' if array else '--image'} {error}")
    return Examples([str(path) for path in image], pictures, None)


def _of_test_set(index: str, count: int, test: Set) -> Examples:
    from fastmlp.cli import sets

    x, y = sets.pair(test)
    chosen = [*range(min(count, len(y)))]
    if index:
        try:
            chosen = [int(part) for part in index.split(",")]
        except ValueError:
            fail(f"--index {index}: expected numbers with commas between them, such as 0,5,9", 2)
        if not all(0 <= number < len(y) for number in chosen):
            fail(f"--index {index}: expected numbers from 0 to {len(y) - 1}")
    return Examples(chosen, x[chosen], y[chosen])


def _check_outputs(outputs: Tensor, examples: Examples) -> None:
    """See that something is predicted: of a NaN no class is the likeliest."""
    from fastmlp.training import nonfinite

    rows = nonfinite.bad_rows(outputs)
    if len(rows):
        first = examples.names[int(rows[0])]
        fail(
            f"the net gives no finite number for {len(rows)} of {len(outputs)} examples, "
            f"the first of them {first}"
        )


def classified(examples: Examples, outputs: Tensor, classes: list[str], top: int) -> list[dict[str, Any]]:
    """A row for each example: its name, label where it is known, and the ``top`` most likely classes."""
    shares, order = outputs.softmax(1).sort(1, descending=True)
    rows: list[dict[str, Any]] = []
    for i, (name, share, by) in enumerate(zip(examples.names, shares.tolist(), order.tolist())):
        row: dict[str, Any] = {"example": name}
        if examples.truth is not None:
            label = int(examples.truth[i])
            row |= {"label": classes[label], "right": label == by[0]}
        likely = [{"class": classes[c], "probability": p} for c, p in zip(by[:top], share)]
        rows.append({**row, "predicted": classes[by[0]], "probability": share[0], "top": likely})
    return rows


def regressed(examples: Examples, outputs: Tensor) -> list[dict[str, Any]]:
    """A row for each example: its name, target where it is known, and the prediction."""
    rows: list[dict[str, Any]] = []
    for i, (name, values) in enumerate(zip(examples.names, outputs.tolist())):
        target = {} if examples.truth is None else {"target": examples.truth[i].tolist()}
        rows.append({"example": name, **target, "predicted": values})
    return rows


def _cells(row: dict[str, Any]) -> dict[str, Any]:
    """A row flat: a column for each number."""
    cells: dict[str, Any] = {}
    for name, value in row.items():
        if name == "top":
            for place, entry in enumerate(value, 1):
                cells |= {f"class {place}": entry["class"], f"probability {place}": entry["probability"]}
        elif isinstance(value, list):
            names = [name] if len(value) == 1 else [f"{name} {place}" for place in range(len(value))]
            cells |= dict(zip(names, value))
        else:
            cells[name] = value
    return cells


def csv_of(rows: list[dict[str, Any]]) -> str:
    """Rows as CSV, with a header."""
    flat = [_cells(row) for row in rows]
    file = io.StringIO()
    writer = csv.DictWriter(file, [*flat[0]], lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return file.getvalue()


def _table(rows: list[dict[str, Any]]) -> Table:
    """Rows for a terminal, the wrong ones in red."""
    shown = []
    for row in rows:
        cells = {name: value for name, value in row.items() if name not in ("top", "right")}
        if "top" in row:
            others = [f"{entry['class']} {entry['probability']:.1%}" for entry in row["top"][1:]]
            cells = {**cells, "then": ", ".join(others)}
        shown.append(_cells(cells))
    table = table_of(
        [*shown[0]],
        [
            [f"{value:.4f}" if isinstance(value, float) else str(value) for value in cells.values()]
            for cells in shown
        ],
        texts=("label", "predicted", "then"),
    )
    for row, line in zip(rows, table.rows):
        line.style = "red" if row.get("right") is False else None
    return table
