"""The data sets of a command."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from fastmlp import data
from fastmlp.cli.common import count_of, fail, warn
from fastmlp.cli.options import Dataset

_FROM_FILES = (Dataset.fashion_mnist, Dataset.mnist, Dataset.kmnist)

#: Images of classes, or rows of numbers with targets.
Set = data.Images | data.Samples


def check(dataset: Dataset, root: Path | None) -> None:
    """See that --data means something."""
    if root is not None and dataset not in _FROM_FILES:
        source = "is drawn here" if dataset is Dataset.synthetic else "comes with scikit-learn"
        fail(f"--data {root}: the {dataset.value} set {source} and reads no files", 2)


def both(dataset: Dataset, root: Path | None, subset: int | None = None) -> tuple[Set, Set]:
    """Train and test set; of both the first part, where ``subset`` says how many train.

    Raises:
        DataError: they are missing or broken, or what reads them is.
    """
    train, test = data.named(dataset.value, root, warn)
    if subset is None or subset >= len(train):
        return train, test
    return train.subset(subset), test.subset(max(1, round(len(test) * subset / len(train))))


def classes_of(samples: Set) -> list[str]:
    """The classes' names; [] where the targets are numbers: a regression."""
    return list(samples.classes) if isinstance(samples, data.Images) else []


def outputs_of(samples: Set) -> int:
    """A net's last width: how many classes there are, or numbers in a target."""
    return len(samples.classes) if isinstance(samples, data.Images) else samples.y.shape[1]


def pair(samples: Set) -> tuple[Tensor, Tensor]:
    """Inputs (N, features), uint8 or float32, and labels (N,) int64 or targets (N, out) float32."""
    if isinstance(samples, data.Images):
        return samples.images.flatten(1), samples.labels
    return samples.x, samples.y


def test_of(about: dict[str, Any], dataset: Dataset | None, root: Path | None) -> Set:
    """The test set of what a saved net was trained on, or of another that fits it.

    Args:
        about: what `nets.load_net` says of the net.
        dataset: another set than that of its run.
        root: --data; by default the run's.
    """
    ran = about["config"]
    name = dataset.value if dataset else ran.get("dataset")
    if name is None:
        fail("--dataset: expected a name, as the net's file has none of what it was trained on", 2)
    if root is None and ran.get("data") and name == ran.get("dataset"):
        root = Path(ran["data"])
    check(Dataset(name), root)
    try:
        _, test = both(Dataset(name), root)
    except data.DataError as error:
        fail(f"{error} (--data DIR, --dataset NAME)")
    features, outputs = test.features, outputs_of(test)
    if (features, outputs) != (about["widths"][0], about["widths"][-1]):
        fail(
            f"--dataset {name}: {count_of(features, 'feature')} and {count_of(outputs, 'output')}, "
            f"but the net has {about['widths'][0]} and {about['widths'][-1]}"
        )
    if bool(classes_of(test)) != bool(about["classes"]):
        kind, other = ("classes", "a regression") if classes_of(test) else ("a regression", "classes")
        fail(f"--dataset {name}: {kind}, but the net is for {other}")
    if about["dataset"] and test.name != about["dataset"]:
        warn(f"the net was trained on {about['dataset']}, and this is {test.name}")
    return test
