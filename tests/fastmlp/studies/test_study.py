"""Results as a table, as JSON and as text."""

from __future__ import annotations

import json

import pytest
import torch
from matplotlib.figure import Figure

from fastmlp.studies.study import Study, cell, machine, one_thread

ROWS = [
    {"width": 4, "loss": [0.5, 0.25], "note": None, "curves": [[1.0, 0.5], [1.0, 0.25]]},
    {"width": 1024, "loss": [None, None], "note": "far", "curves": [[1.0], []]},
]


@pytest.fixture
def study() -> Study:
    return Study("width", "How wide?", ROWS, {"seeds": 2, "machine": "a table"}, lambda study: Figure())


def test_table(study: Study) -> None:
    assert study.table().splitlines() == [
        "| width | loss             | note |",
        "|-------|------------------|------|",
        "| 4     | 0.375 (0.25-0.5) |      |",
        "| 1,024 | diverged         | far  |",
    ]


def test_json_and_markdown(study: Study) -> None:
    found = json.loads(study.to_json())
    assert found == {
        "name": "width",
        "question": "How wide?",
        "setup": {"seeds": 2, "machine": "a table"},
        "rows": ROWS,
    }
    text = study._repr_markdown_()
    assert text.startswith("**How wide?**\n\n| width |")
    assert text.endswith("seeds: 2; machine: a table")


def test_plot_draws_this_study() -> None:
    seen = []
    study = Study("a", "?", ROWS, {}, lambda study: seen.append(study) or Figure())
    assert isinstance(study.plot(), Figure)
    assert seen == [study]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1 / 3, "0.3333"),
        ([0.5], "0.5"),
        ([1.0, None], "1, 1 diverged"),
        (12345, "12,345"),
        ("x", "x"),
    ],
)
def test_cell(value: object, text: str) -> None:
    assert cell(value) == text


def test_the_machine_is_named(device: str) -> None:
    text = machine(torch.device(device))
    assert text.endswith(f"torch {torch.__version__}")
    assert (torch.cuda.get_device_name() if device == "cuda" else "cores") in text


def test_one_thread() -> None:
    before = torch.get_num_threads()
    with one_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before
