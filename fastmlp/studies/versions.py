"""To be written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from fastmlp.studies.study import Study


def versions(
    *,
    small: bool = False,
    data: Path | str | None = None,
    device: torch.device | str | None = None,
    say: Callable[[str], None] = print,
) -> Study:
    """To be written."""
    raise NotImplementedError
