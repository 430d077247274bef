"""Training curves that grow while the training runs."""

from __future__ import annotations

from typing import Any

from fastmlp.plots.history import history
from fastmlp.plots.style import Picture
from fastmlp.training import Epoch, History


class Live:
    """For ``fit(..., on_epoch=Live())``: in a notebook the curve is drawn anew, in place, after every epoch.

    Elsewhere nothing is shown; ``history`` collects the epochs all the same.
    """

    def __init__(self, *, title: str = "") -> None:
        self.history = History()
        self.title = title
        self._shown: Any = None

    def __call__(self, epoch: Epoch) -> None:
        """Take in one epoch."""
        self.history.epochs.append(epoch)
        self.history.seconds += epoch.seconds
        if self._shown is not None:
            self._shown.update(self.figure())
        elif _in_notebook():
            from IPython.display import display

            self._shown = display(self.figure(), display_id=True)

    def figure(self) -> Picture:
        """The curve as far as it is."""
        return history(self.history, title=self.title)


def _in_notebook() -> bool:
    """Whether what runs this can show pictures: a Jupyter kernel, not IPython in a terminal."""
    try:
        from IPython import get_ipython
    except ImportError:
        return False
    return getattr(get_ipython(), "kernel", None) is not None
