"""Where the tests find the real Fashion-MNIST."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

_SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


def real_data() -> Path:
    """``FASTMLP_DATA``, else ../shared/data; the test that asks is skipped where there is neither."""
    candidates = [Path(os.environ["FASTMLP_DATA"])] if "FASTMLP_DATA" in os.environ else [_SHARED]
    for root in candidates:
        if (root / "FashionMNIST" / "raw").is_dir():
            return root
    pytest.skip(f"no FashionMNIST/raw in {' or '.join(map(str, candidates))}; set FASTMLP_DATA")
