"""Every kernel that the host launches, by its source: what goes through all kernels compares with it."""

from __future__ import annotations

import ast
from pathlib import Path

from fastmlp import kernels


def entry_points() -> set[tuple[str, str]]:
    """The module and the name of each."""
    root = Path(kernels.__path__[0])
    return {
        (".".join(("fastmlp.kernels", *file.relative_to(root).with_suffix("").parts)), node.name)
        for file in root.rglob("*.py")
        for node in ast.parse(file.read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name.endswith("_kernel")
    }
