"""The matplotlib backend of notebooks' sessions: a figure that is shown is among what its cell shows. It draws as Agg does."""

from __future__ import annotations

from matplotlib.backend_bases import FigureManagerBase
from matplotlib.backends.backend_agg import FigureCanvasAgg

from aster_sandbox.service.inside import display


class FigureManager(FigureManagerBase):
    """Of one figure of pyplot's."""

    def show(self) -> None:
        """``plt.show()`` and ``fig.show()`` come here."""
        display(self.canvas.figure)


class FigureCanvas(FigureCanvasAgg):
    """Agg's."""

    manager_class = FigureManager
