"""``fastmlp predict``."""

from __future__ import annotations

from pathlib import Path

import torch
import typer
from torch import Tensor

from fastmlp import files
from fastmlp.cli import inputs, nets, sets
from fastmlp.cli.common import (
    DATA_HELP,
    DATASET_HELP,
    DEVICE_HELP,
    JSON_HELP,
    NET_HELP,
    Dataset,
    Dtype,
    device_of,
    emit,
    fail,
    json_of,
    memory_for,
    start,
    writable,
)
from fastmlp.cli.predictions import Examples, classified, csv_of, regressed, table_of
from fastmlp.training import finite

EXAMPLE = """Example: fastmlp predict runs/fashion-mnist-1.safetensors --index 0,5,9

fastmlp predict runs/fashion-mnist-1.safetensors --image boot.png --invert --json"""

_SET, _OWN = "Of the test set", "Of yours"


def predict(
    net: Path = typer.Argument(..., metavar="NET", help=NET_HELP, show_default=False),
    index: str = typer.Option("", metavar="0,5,9", help="These examples.", rich_help_panel=_SET),
    count: int | None = typer.Option(
        None, metavar="N", min=1, help="The first N examples; default: 10.", rich_help_panel=_SET
    ),
    dataset: Dataset | None = typer.Option(None, metavar="NAME", help=DATASET_HELP, rich_help_panel=_SET),
    data: Path | None = typer.Option(None, metavar="DIR", help=DATA_HELP, rich_help_panel=_SET),
    image: list[Path] = typer.Option(
        [],
        metavar="FILE",
        help="A picture, made grey and of the net's size; repeatable.",
        rich_help_panel=_OWN,
    ),
    invert: bool = typer.Option(
        False,
        "--invert",
        help="Invert the pictures: they are dark on white, the data is bright on black.",
        rich_help_panel=_OWN,
    ),
    array: Path | None = typer.Option(
        None,
        "--input",
        metavar="FILE",
        help="Rows of numbers: .npy, .pt or .safetensors.",
        rich_help_panel=_OWN,
    ),
    top: int = typer.Option(3, metavar="K", min=1, help="How many of the likeliest classes to show."),
    batch_size: int = typer.Option(4096, metavar="N", min=1, help="Examples at a time."),
    device: str = typer.Option("", metavar="NAME", help=DEVICE_HELP),
    dtype: Dtype = typer.Option(Dtype.float32, metavar="NAME", help="Of the matrix products."),
    out: Path | None = typer.Option(None, metavar="FILE", help="Save them, as .json or .csv."),
    as_json: bool = typer.Option(False, "--json", help=JSON_HELP),
) -> None:
    """Predict by a net that train saved: examples of its test set, pictures, or rows of numbers.

    Numbers are taken as in training: uint8 as pixels from 0 to 255, floats as they are.
    """
    console = start(as_json)
    sources = {
        "--index": bool(index),
        "--count": count is not None,
        "--image": bool(image),
        "--input": array is not None,
    }
    given = [option for option, there in sources.items() if there]
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
    where = device_of(device)
    model, about = nets.opened(net, where)
    if image or array:
        examples = _own(image, invert, array, about["widths"][0])
    else:
        examples = _of_test_set(index, count or 10, sets.test_of(about, dataset, data))
    with memory_for(f"--batch-size {batch_size}"):
        outputs = nets.outputs(model, examples.x.to(where), batch_size, getattr(torch, dtype.value)).cpu()
    _check_outputs(outputs, examples)
    classes = about["classes"]
    rows = classified(examples, outputs, classes, top) if classes else regressed(examples, outputs)
    found = {"net": str(net), "device": str(where), "dtype": dtype.value, "predictions": rows}
    console.print(table_of(rows))
    known = [row["right"] for row in rows if "right" in row]
    if known:
        console.print(f"{sum(known)} of {len(known)} right")
    if out is not None:
        text = json_of(found) if out.suffix == ".json" else csv_of(rows)
        try:
            files.write(out, [text.encode()])
        except OSError as error:
            fail(f"--out {out}: {error.strerror or error}")
        console.print(f"saved to {out}")
    if as_json:
        emit(found)


def _check_outputs(outputs: Tensor, examples: Examples) -> None:
    """See that something is predicted: of a NaN no class is the likeliest."""
    if finite.has_others(outputs):
        rows = finite.bad_rows(outputs)
        first = examples.names[int(rows[0])]
        fail(
            f"the net gives no finite number for {len(rows)} of {len(outputs)} examples, "
            f"the first of them {first}"
        )


def _own(image: list[Path], invert: bool, array: Path | None, features: int) -> Examples:
    try:
        if array is not None:
            rows = inputs.array(array, features)
            return Examples([*range(len(rows))], rows, None)
        pictures = torch.stack([inputs.picture(path, features, invert) for path in image])
    except inputs.InputError as error:
        fail(f"{'--input' if array else '--image'} {error}")
    return Examples([str(path) for path in image], pictures, None)


def _of_test_set(index: str, count: int, test: sets.Set) -> Examples:
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
