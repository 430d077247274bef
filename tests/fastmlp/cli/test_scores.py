"""Scores against scikit-learn's."""

from __future__ import annotations

import pytest
import torch
from sklearn import metrics

from fastmlp.cli.scores import confusion, mean_squared_error, r2, scores


def test_scores(device: str) -> None:
    """With a class that nobody has (3), one that is never predicted (1), and one with neither (4)."""
    labels = torch.randint(3, (200,), device=device)
    predicted = torch.where(
        torch.rand(200, device=device) < 0.6, labels, torch.randint(4, (200,), device=device)
    )
    predicted[predicted == 1] = 0
    counts = confusion(labels, predicted, 5)
    y, p = labels.cpu().numpy(), predicted.cpu().numpy()
    assert counts.tolist() == metrics.confusion_matrix(y, p, labels=range(5)).tolist()
    *found, mean = scores(counts, "abcde")
    theirs = metrics.precision_recall_fscore_support(y, p, labels=range(5), zero_division=0)
    for column, expected in zip(("precision", "recall", "f1", "support"), theirs):
        assert [getattr(score, column) for score in found] == pytest.approx(expected.tolist())
    assert "".join(score.name for score in found) == "abcde"
    assert mean[:4] == ("mean", *(pytest.approx(column.mean()) for column in theirs[:3]))
    assert mean.support == 200


def test_regression(device: str) -> None:
    targets = torch.randn(50, 3, device=device)
    outputs = targets + 0.3 * torch.randn(50, 3, device=device)
    y, p = targets.cpu().double().numpy(), outputs.cpu().double().numpy()
    assert mean_squared_error(outputs, targets) == pytest.approx(metrics.mean_squared_error(y, p))
    assert r2(outputs, targets) == pytest.approx(metrics.r2_score(y, p))
