"""What a session or a notebook shows at the end of a cell: a short line, a small table without code."""

from __future__ import annotations

import math
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from torch import nn

import fastmlp
from fastmlp import data, markup
from fastmlp.costs.ceilings import Ceilings
from fastmlp.training import Epoch, History


def a_history(count: int = 30) -> History:
    epochs = [Epoch(i, 1 / i, 0.5, 0.625, 1.0, 10.0, abs(i - 9) / 16) for i in range(1, count + 1)]
    return History(epochs, 12.345, "cpu", "<b>reason</b> & more")


def a_profile() -> fastmlp.profile:
    net = fastmlp.MLP(8, [4])
    ceilings = Ceilings({1 << 16: 1e10, 1 << 30: 1e10}, {"float32": 1e11}, 1e-6)
    with fastmlp.profile(net, ceilings=ceilings) as prof:
        net(torch.ones(2, 8))
    return prof


def a_step() -> fastmlp.TrainStep:
    net = fastmlp.MLP(8, [4])
    return fastmlp.TrainStep(net, fastmlp.CrossEntropyLoss(), torch.optim.SGD(net.parameters(), lr=0.1))


SHOWN: dict[str, Any] = {
    "cost": lambda: fastmlp.cost([784, 256, 10], 256, device="h200"),
    "a cost's plan": lambda: fastmlp.cost([784, 256, 10], 256, device="h200").plans["layers"],
    "history": a_history,
    "no history": History,
    "profile": a_profile,
    "profile to be": lambda: fastmlp.profile(),
    "trace": lambda: a_profile().found,
    "step": a_step,
    "images": lambda: data.Images(
        torch.zeros(500, 28, 28, dtype=torch.uint8), torch.zeros(500).long(), ("a",), "x"
    ),
    "samples": lambda: data.Samples(torch.zeros(500, 8), torch.zeros(500, 1), "x"),
    "fuse": lambda: fastmlp.fuse(nn.Sequential(nn.Linear(4, 2)), report=True),
}


@pytest.mark.parametrize("name", SHOWN)
def test_a_line(name: str) -> None:
    text = repr(SHOWN[name]())
    assert "\n" not in text
    assert len(text) < 250
    assert " object at 0x" not in text


@pytest.mark.parametrize("name", ["cost", "history", "no history", "profile", "fuse"])
def test_a_table(name: str) -> None:
    html = SHOWN[name]()._repr_html_()
    tree = ElementTree.fromstring(f"<body>{html}</body>")  # well formed, so all text in it is escaped
    assert tree.find(".//table") is not None
    assert tree.find(".//script") is None
    assert len(html) < 12_000


def test_what_they_say() -> None:
    assert repr(a_history(2)) == (
        "<History: 2 epochs in 12.3 s, train loss 0.5000, train accuracy 0.5000, test loss 0.4375, "
        "test accuracy 0.6250, engine cpu (<b>reason</b> & more)>"
    )
    assert repr(a_step()).startswith("<TrainStep: MLP, CrossEntropyLoss, SGD, float32; engine: not known")
    assert repr(SHOWN["images"]()) == "<Images: x, 500 x 28 x 28, 1 classes, on cpu>"
    assert repr(SHOWN["cost"]()).startswith("<Cost: forward + backward, batch 256, float32 (ieee) on ")
    assert fastmlp.profile()._repr_html_() is None  # nothing to show yet


def test_a_long_history() -> None:
    """The first epoch, the best and the last ones; no curve of what is not finite."""
    html = a_history()._repr_html_()
    assert "9 (best)" in html
    assert "&lt;b&gt;reason&lt;/b&gt; &amp; more" in html
    assert html.count("<tr>") == 1 + 1 + 1 + 1 + 11
    assert html.count("<polyline") == 2
    assert markup.curves({"loss": [1.0, math.nan, None, math.inf]}) == ""
