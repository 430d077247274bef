"""What the pages quote is what the code says, and docs/engines.md has every reason."""

from __future__ import annotations

import re

import pytest

from tests.docs.messages import ROOT, everything, literal, reasons, returned

_ENGINES = ROOT / "docs" / "engines.md"
_SOURCES = [
    ("fastmlp/engine/network.py", "recognise", "_layers_problem", "_numbers_problem", "_parameters_problem"),
    ("fastmlp/engine/choose.py", "step_problem", "whole_epoch_problem"),
    ("fastmlp/engine/checks.py", "batch_problem"),
    ("fastmlp/engine/rules.py", "recognise", "_problem"),
    ("fastmlp/engine/fused.py", "problem"),
    ("fastmlp/engine/persistent.py", "problem"),
    ("fastmlp/engine/step.py", "_find"),
    ("fastmlp/costs/choice.py", "whole_misfit"),
    ("fastmlp/functional/ways.py", "_unfit"),
    ("fastmlp/backends/__init__.py", "_triton_problem"),
    ("kernels/linear/tma.py", "forward_misfit", "backward_misfit", "_unsupported", "_not_of"),
]


def quoted(page: str) -> list[str]:
    """The first cell of each row of the tables of reasons or messages, where it is code."""
    text = (ROOT / "docs" / page).read_text()
    tables = re.findall(r"^\| (?:reason|message) \|.*\n\|.*\n((?:\|.*\n?)+)", text, re.MULTILINE)
    cells = [row.split(" | ")[0].removeprefix("| ") for table in tables for row in table.splitlines()]
    return [code.strip("`") for cell in cells for code in re.findall(r"``.+?``|`[^`]+`", cell)]


def test_every_reason_is_explained() -> None:
    patterns = [p for path, *functions in _SOURCES for p in returned(path, *functions)]
    patterns += reasons("fastmlp/backends/__init__.py")
    shown = quoted("engines.md")
    assert len(patterns) > 50
    missing = [p for p in patterns if not any(re.fullmatch(p, line) for line in shown)]
    assert not missing, f"docs/engines.md says nothing of {missing}"


@pytest.mark.parametrize("page", ["engines.md", "troubleshooting.md"])
def test_what_is_quoted_is_said_somewhere(page: str) -> None:
    """A string of the source, its values filled in, is the message; a good part of it is the string's own."""
    patterns = [(len(literal(p)), re.compile(p)) for p in everything("fastmlp", "kernels")]
    shown = quoted(page)
    assert len(shown) > 10
    for message in shown:
        texts = (message, f"error: {message}", message.removeprefix("error: "))
        said = any(
            length > len(message) / 5 and any(map(pattern.fullmatch, texts)) for length, pattern in patterns
        )
        assert said, f"{page}: nothing says {message!r}"
