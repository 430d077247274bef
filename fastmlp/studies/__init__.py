"""The chapter's exercises as runs whose results are data, each with a plot.

``study``          what each of them gives
``exercise``       nets that differ in one thing, trained alike
``exercises``      width, depth, learning rate, activation, initialization
``alignment``      sizes that are multiples of 8, and their neighbours
``versions``       the book's from-scratch and concise code, and the fused engine
``scratch``        the first of these
``collapse``       a net without activations is one linear layer
``approximation``  one hidden layer at growing widths fits a function
"""

from collections.abc import Callable

from fastmlp.studies.alignment import alignment
from fastmlp.studies.approximation import approximation
from fastmlp.studies.collapse import collapse
from fastmlp.studies.exercises import activation, depth, initialization, learning_rate, width
from fastmlp.studies.study import Study
from fastmlp.studies.versions import versions

#: Every study by its name.
STUDIES: dict[str, Callable[..., Study]] = {
    "width": width,
    "depth": depth,
    "learning_rate": learning_rate,
    "activation": activation,
    "initialization": initialization,
    "alignment": alignment,
    "versions": versions,
    "collapse": collapse,
    "approximation": approximation,
}
__all__ = [
    "STUDIES",
    "Study",
    "activation",
    "alignment",
    "approximation",
    "collapse",
    "depth",
    "initialization",
    "learning_rate",
    "versions",
    "width",
]
