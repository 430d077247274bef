"""The examples of docs/data.md run."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torchvision
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset
from torchvision.transforms import ToTensor

import fastmlp

_PAGE = Path(__file__).resolve().parents[3] / "docs" / "data.md"


def test_examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = {"fastmlp": fastmlp, "np": np, "nn": nn, "torchvision": torchvision, "ToTensor": ToTensor}
    names |= {"DataLoader": DataLoader, "IterableDataset": IterableDataset, "TensorDataset": TensorDataset}
    blocks = re.findall(r"```python\n(.*?)```", _PAGE.read_text(), re.DOTALL)
    assert len(blocks) == 3
    for block in blocks:
        exec(block, names)
    assert (tmp_path / "history.json").exists()
