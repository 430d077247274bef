"""One hidden layer approximates a function."""

from __future__ import annotations

import pytest
import torch

from fastmlp import studies
from fastmlp.studies.approximation import target


def test_the_wider_the_closer(device: str) -> None:
    study = studies.approximation([1, 8, 64], steps=300, small=True, device=device, say=lambda text: None)
    errors = [row["mean squared error"][0] for row in study.rows]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.5 * errors[0]
    curves, means = study.plot().axes
    function, *fits = curves.lines
    x = torch.linspace(-1, 1, 1025)[1::2, None]
    assert list(function.get_xdata()) == x[:, 0].tolist()
    assert list(function.get_ydata()) == target(x)[:, 0].tolist()
    assert [list(line.get_ydata()) for line in fits] == [row["fit"][0] for row in study.rows]
    assert list(means.lines[0].get_ydata()) == errors
    fit = torch.tensor(study.rows[2]["fit"][0], dtype=torch.float64)
    assert (fit - target(x.double())[:, 0]).square().mean().item() == pytest.approx(errors[2], rel=1e-3)


def test_seeds_differ_and_repeat() -> None:
    quick = {"steps": 5, "small": True, "device": "cpu", "say": lambda text: None}
    one, other = (studies.approximation([4], seeds=[0, 1], **quick) for _ in range(2))
    assert one.rows == other.rows
    assert len(set(one.rows[0]["mean squared error"])) == 2


def test_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="data: expected None, since this study fits a function of its own"):
        studies.approximation(data="somewhere")
    for option in ({"widths": []}, {"seeds": []}, {"steps": 0}):
        with pytest.raises(ValueError, match=f"{next(iter(option))}: expected at least one"):
            studies.approximation(**option)
