"""Predictions and the confusion matrix."""

from __future__ import annotations

import pytest
import torch

from fastmlp import plots
from fastmlp.plots import style
from fastmlp.plots.labelled import matrix

CLASSES = ("ankle boot", "bag", "coat")


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randint(256, (7, 6, 6), dtype=torch.uint8)


LABELS = torch.tensor([0, 1, 2, 0, 1, 2, 2])
PREDICTED = torch.tensor([0, 1, 1, 0, 2, 2, 2])  # 2 and 4 are wrong


def test_predictions(images: torch.Tensor) -> None:
    figure = plots.predictions(images, LABELS, PREDICTED, CLASSES, rows=2, columns=3)
    assert len(figure.axes) == 6
    for i, axis in enumerate(figure.axes):
        assert axis.images[0].get_array().tolist() == images[i].tolist()
        assert axis.get_title() == CLASSES[LABELS[i]]
        assert axis.get_xlabel() == CLASSES[PREDICTED[i]]
        wrong = i in (2, 4)
        assert axis.xaxis.label.get_color() == (style.ORANGE if wrong else style.BLUE)
        assert axis.xaxis.label.get_weight() == ("bold" if wrong else "normal")
    assert "(2 of 7 are: 28.6 %)" in figure.get_suptitle()


@pytest.mark.parametrize("shape", [(7, 36), (7, 1, 6, 6)])
def test_only_the_wrong_ones_of_rows_and_single_channels(
    images: torch.Tensor, shape: tuple[int, ...]
) -> None:
    figure = plots.predictions(images.view(shape), LABELS, PREDICTED, CLASSES, only_wrong=True)
    assert [axis.images[0].get_array().tolist() for axis in figure.axes] == images[[2, 4]].tolist()


def test_confusion(device: str) -> None:
    figure = plots.confusion(LABELS.to(device), PREDICTED.to(device), CLASSES)
    axis = figure.axes[0]
    assert [int(text.get_text()) for text in axis.texts] == [2, 0, 0, 0, 1, 1, 0, 1, 2]
    shares = axis.images[0].get_array().tolist()
    assert shares == [[1, 0, 0], [0, 0.5, 0.5], [0, pytest.approx(1 / 3), pytest.approx(2 / 3)]]
    assert axis.images[0].get_clim() == (0, 1)
    for ticks in (axis.get_xticklabels(), axis.get_yticklabels()):
        assert [tick.get_text() for tick in ticks] == [*CLASSES]
    assert axis.get_title() == "5 of 7 right: 71.43 %"
    assert matrix(LABELS, PREDICTED, 3).tolist() == [[2, 0, 0], [0, 1, 1], [0, 1, 2]]


def test_a_class_without_examples_and_many_classes() -> None:
    """A row of zeros, and no numbers that nobody could read."""
    names = [f"class {i}" for i in range(30)]
    axis = plots.confusion(torch.tensor([0, 1]), torch.tensor([0, 29]), names).axes[0]
    assert len(axis.texts) == 0
    assert torch.isfinite(torch.as_tensor(axis.images[0].get_array())).all()


@pytest.mark.parametrize(
    ("labels", "predicted", "message"),
    [
        (LABELS, PREDICTED[:3], r"predicted: expected \(7,\), one a label, got \(3,\)"),
        (LABELS, PREDICTED + 1, "predicted: expected indices from 0 to 2, got 1 to 3"),
        (LABELS - 1, PREDICTED, "labels: expected indices from 0 to 2, got -1 to 1"),
        (
            LABELS.float(),
            PREDICTED,
            r"labels: expected \(N,\) class indices, at least one, got \(7,\) torch.float32",
        ),
        (LABELS[:0], PREDICTED[:0], r"labels: expected \(N,\) class indices, at least one, got \(0,\)"),
    ],
)
def test_labels_that_do_not_fit(labels: torch.Tensor, predicted: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plots.confusion(labels, predicted, CLASSES)
    with pytest.raises(ValueError, match=message):
        plots.predictions(torch.zeros(len(labels), 4), labels, predicted, CLASSES)


def test_images_that_do_not_fit(images: torch.Tensor) -> None:
    for wrong in (images[:3], torch.zeros(7, 35), torch.zeros(7, 3, 6, 6)):
        with pytest.raises(ValueError, match=r"images: expected \(7, height, width\)"):
            plots.predictions(wrong, LABELS, PREDICTED, CLASSES)
    with pytest.raises(ValueError, match="only_wrong: none of the 7 predictions is wrong"):
        plots.predictions(images, LABELS, LABELS, CLASSES, only_wrong=True)
    with pytest.raises(ValueError, match="rows, columns: expected at least 1 each, got 0 and 9"):
        plots.predictions(images, LABELS, LABELS, CLASSES, rows=0)
