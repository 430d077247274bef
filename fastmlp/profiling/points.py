"""A kernel as a point of a roofline plot."""

from __future__ import annotations

from typing import NamedTuple


class Point(NamedTuple):
    """A kernel: what it does, and how long it takes."""

    label: str
    kind: str  # gives the colour: kernels of a kind look alike
    operations: float
    bytes: float
    seconds: float
    dtype: str  # whose roof it is under

    @property
    def intensity(self) -> float:
        """Operations a byte."""
        return self.operations / self.bytes

    @property
    def rate(self) -> float:
        """Operations a second."""
        return self.operations / self.seconds
