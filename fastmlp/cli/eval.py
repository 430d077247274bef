"""``fastmlp eval``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import typer
from rich.table import Table
from torch.nn import functional as F

from fastmlp.cli import nets, sets
from fastmlp.cli.common import (
    DATA_HELP,
    DATASET_HELP,
    DEVICE_HELP,
    JSON_HELP,
    NET_HELP,
    Dataset,
    Dtype,
    count_of,
    device_of,
    emit,
    memory_for,
    start,
)
from fastmlp.cli.scores import Score, confusion, mean_squared_error, r2, scores

EXAMPLE = "Example: fastmlp eval runs/fashion-mnist-1.safetensors"


def evaluate(
    net: Path = typer.Argument(..., metavar="NET", help=NET_HELP, show_default=False),
    dataset: Dataset | None = typer.Option(None, metavar="NAME", help=DATASET_HELP),
    data: Path | None = typer.Option(None, metavar="DIR", help=DATA_HELP),
    batch_size: int = typer.Option(4096, metavar="N", min=1, help="Examples at a time."),
    device: str = typer.Option("", metavar="NAME", help=DEVICE_HELP),
    dtype: Dtype = typer.Option(Dtype.float32, metavar="NAME", help="Of the matrix products."),
    as_json: bool = typer.Option(False, "--json", help=JSON_HELP),
) -> None:
    """Evaluate a net that train saved on the test set of its data.

    Of classes: loss, accuracy, and each class' precision, recall and F1; with --json the confusion matrix
    too, a row for each true class. Of a regression: mean squared error and R2.
    """
    console = start(as_json)
    where = device_of(device)
    model, about = nets.opened(net, where)
    test = sets.test_of(about, dataset, data).to(where)
    x, y = sets.pair(test)
    with memory_for(f"--batch-size {batch_size}"):
        outputs = nets.outputs(model, x, batch_size, getattr(torch, dtype.value))
    found: dict[str, Any] = {
        "net": str(net),
        "dataset": test.name,
        "examples": len(y),
        "device": str(where),
        "dtype": dtype.value,
    }
    console.print(
        f"{net}: {nets.title(about)}, {test.name}, {count_of(len(y), 'test example')}, {dtype.value}, {where}"
    )
    if not about["classes"]:
        found |= {"mse": mean_squared_error(outputs, y), "r2": r2(outputs, y)}
        console.print(f"mean squared error {found['mse']:.4f}, R2 {found['r2']:.4f}", style="bold")
    else:
        names, predicted = about["classes"], outputs.argmax(1)
        counts = confusion(y, predicted, len(names))
        *classes, mean = scores(counts, names)
        found |= {
            "loss": F.cross_entropy(outputs, y).item(),
            "accuracy": (predicted == y).double().mean().item(),
            "classes": [score._asdict() for score in classes],
            "mean": mean._asdict(),
            "confusion": counts.tolist(),
        }
        console.print(f"loss {found['loss']:.4f}, accuracy {found['accuracy']:.4f}", style="bold")
        console.print(_table([*classes, mean]))
    if as_json:
        emit(found)


def _table(rows: list[Score]) -> Table:
    table = Table("class", "precision", "recall", "F1", "examples", box=None)
    for column in table.columns[1:]:
        column.justify = "right"
    for name, *shares, support in rows:
        table.add_row(name, *(f"{share:.4f}" for share in shares), f"{support:,}")
    return table
