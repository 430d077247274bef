"""Pictures, by matplotlib: every function returns a `matplotlib.figure.Figure` and writes nothing.

``style``        colours, sizes, and figures that show themselves in a notebook
``save``         a figure as a PNG, SVG or PDF file
``activations``  functions and their gradients, as the kernels compute them
``history``      training curves, drawn anew after every epoch too
``labelled``     images with their labels and predictions; which class is taken for which
``roofline``     kernels under what the device reaches
"""

try:
    import matplotlib as _  # noqa: F401 - said here once for all of them
except ImportError as error:  # pragma: no cover
    raise ImportError(f"fastmlp.plots needs matplotlib ({error}): pip install 'fastmlp[train]'") from error

from fastmlp.plots.activations import activations
from fastmlp.plots.history import Live, history
from fastmlp.plots.labelled import confusion, predictions
from fastmlp.plots.roofline import roofline
from fastmlp.plots.save import save

__all__ = ["Live", "activations", "confusion", "history", "predictions", "roofline", "save"]
