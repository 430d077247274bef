"""``fastmlp eval``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.table import Table

from fastmlp.cli.common import count_of, device_of, emit, memory_for, start, table_of
from fastmlp.cli.options import AsJson, BatchSize, Data, Device, Dtype, Net, OtherDataset, Products

if TYPE_CHECKING:
    from torch import Tensor

EXAMPLE = "Example: fastmlp eval runs/fashion-mnist-1.safetensors"


def evaluate(
    net: Net,
    dataset: OtherDataset = None,
    data: Data = None,
    batch_size: BatchSize = 4096,
    device: Device = "",
    dtype: Products = Dtype.float32,
    as_json: AsJson = False,
) -> None:
    """Evaluate a net that train saved on the test set of its data.

    Of classes: loss, accuracy, and each class' precision, recall and F1; with --json the confusion matrix
    too, a row for each true class. Of a regression: mean squared error and R2.
    """
    console = start(as_json)
    from torch.nn import functional as F

    from fastmlp.cli import nets, sets

    where = device_of(device)
    model, about = nets.opened(net, where)
    test = sets.test_of(about, dataset, data).to(where)
    x, y = sets.pair(test)
    with memory_for(f"--batch-size {batch_size}"):
        outputs = nets.outputs(model, x, batch_size, dtype.torch)
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


class Score(NamedTuple):
    """Of one class. A share of nothing counts as 0, as in scikit-learn."""

    name: str
    precision: float  # of those predicted so, the share that is
    recall: float  # of those that are, the share predicted so
    f1: float  # the harmonic mean of the two
    support: int  # how many there are


def confusion(labels: Tensor, predicted: Tensor, classes: int) -> Tensor:
    """How often each class (row) was predicted as each (column), (classes, classes) int64."""
    return (labels * classes + predicted).bincount(minlength=classes * classes).view(classes, classes)


def scores(counts: Tensor, names: Sequence[str]) -> list[Score]:
    """Each class', and their plain mean as the last one."""
    counts = counts.cpu().double()
    right, is_so, said_so = counts.diag(), counts.sum(1), counts.sum(0)
    precision, recall = right / said_so.clamp(min=1), right / is_so.clamp(min=1)
    f1 = 2 * right / (is_so + said_so).clamp(min=1)
    columns = [[*column.tolist(), column.mean().item()] for column in (precision, recall, f1)]
    support = [*is_so.int().tolist(), int(is_so.sum())]
    return [Score(*row) for row in zip([*names, "mean"], *columns, support)]


def mean_squared_error(outputs: Tensor, targets: Tensor) -> float:
    """The mean of the squared differences, both (N, out)."""
    return (outputs.double() - targets.double()).square().mean().item()


def r2(outputs: Tensor, targets: Tensor) -> float:
    """The share of the targets' variance that is explained, the mean over the outputs; both (N, out).

    1 is perfect, 0 is as good as the mean. NaN where a target does not vary.
    """
    outputs, targets = outputs.double(), targets.double()
    left = (outputs - targets).square().sum(0)
    return (1 - left / (targets - targets.mean(0)).square().sum(0)).mean().item()


def _table(rows: list[Score]) -> Table:
    head = ("class", "precision", "recall", "F1", "examples")
    return table_of(
        head,
        [(name, *(f"{share:.4f}" for share in shares), f"{support:,}") for name, *shares, support in rows],
    )
