"""A law holds whoever computes: torch's own ops, the kernels, or what "auto" does of its own on a CPU."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fastmlp import backends


@pytest.fixture(params=["torch", "triton", "auto"])
def backend(request: pytest.FixtureRequest, ways_of_auto: None) -> Iterator[str]:
    """Of "auto" the thresholds are so low that small problems take its ways too."""
    with backends.use(request.param):
        yield request.param
