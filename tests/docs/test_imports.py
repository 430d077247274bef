"""What pages, notebooks and examples import is where they say."""

from __future__ import annotations

import importlib
import json
import re

from tests.installs import ROOT


def code() -> list[str]:
    """All Python of them."""
    pages = [path.read_text() for path in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md"))]
    found = [
        block
        for page in pages
        for block in re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    ]
    for path in (ROOT / "docs").rglob("*.ipynb"):
        cells = json.loads(path.read_text())["cells"]
        found += ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    return found + [path.read_text() for path in (ROOT / "examples").glob("*.py")]


def test_documented_imports() -> None:
    found = set(re.findall(r"^ *from (fastmlp[\w.]*) import ([\w, ]+)", "\n".join(code()), re.MULTILINE))
    assert len(found) > 15
    for module, names in found:
        for name in names.split(","):
            if not hasattr(importlib.import_module(module), name.strip()):
                importlib.import_module(f"{module}.{name.strip()}")
