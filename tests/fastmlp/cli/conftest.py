"""A small data set, and a net that was trained on one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.commands import run, small

__all__ = ["small"]


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A net of scikit-learn's digits, 8 x 8 pixels."""
    out = tmp_path_factory.mktemp("digits") / "net.safetensors"
    result = run(
        "train", "--dataset", "digits", "--epochs", 8, "--optimizer", "nesterov", "--batch-size", 64,
        "--hidden", 32, "--device", "cpu", "--out", out,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    return out


@pytest.fixture(scope="session")
def regression(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A net of scikit-learn's diabetes: ten numbers, one target."""
    out = tmp_path_factory.mktemp("diabetes") / "net.safetensors"
    result = run("train", "--dataset", "diabetes", "--epochs", 40, "--device", "cpu", "--out", out)
    assert result.exit_code == 0, result.output
    return out
