"""What is timed at which size."""

from __future__ import annotations

import sys

import pytest
import torch

from fastmlp import studies


def test_a_small_run(device: str) -> None:
    study = studies.alignment([16, 17], rounds=3, small=True, device=device, say=lambda text: None)
    assert [(row["size"], row["dtype"]) for row in study.rows] == [
        (16, "float32"),
        (17, "float32"),
        (16, "bfloat16"),
        (17, "bfloat16"),
    ]
    for row in study.rows:
        for work in ("matrix product", "training step"):
            (low, high) = row[f"{work}, quartiles"][0]
            assert 0 < low <= row[f"{work}, ms"] <= high
    for row in study.rows[::2]:
        assert row["matrix product, of 16's"] == 1
    product, step = study.plot().axes
    heights = [bar.get_height() for bar in product.patches]
    assert heights == [row["matrix product, ms"] for row in study.rows]
    assert product.get_ylim()[0] == step.get_ylim()[0] == 0  # bars that begin elsewhere would lie


def test_the_sizes_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forth and back, so that no size always comes after the same one."""
    module = sys.modules["fastmlp.studies.alignment"]
    called: list[int] = []
    monkeypatch.setattr(module, "_product", lambda n, *_: lambda: called.append(n))
    monkeypatch.setattr(module, "_step", lambda n, *_: lambda: called.append(-n))
    studies.alignment(
        [1, 2], dtypes=[torch.float32], rounds=2, small=True, device="cpu", say=lambda text: None
    )
    turns = [n for n, before in zip(called, [0, *called]) if n != before]
    assert turns[-8:][1:] == [2, -1, -2, -1, 2, 1] or turns[-7:] == [1, 2, -1, -2, -1, 2, 1]


def test_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="data: expected None, since this study times random numbers"):
        studies.alignment(data="somewhere")
    for option in ({"sizes": []}, {"dtypes": []}, {"rounds": 0}):
        with pytest.raises(ValueError, match=f"{next(iter(option))}: expected at least one"):
            studies.alignment(**option)
