"""The matplotlib backend of notebook sessions. It draws with Agg; showing a figure adds it to what the cell shows."""

from __future__ import annotations

from matplotlib.backend_bases import FigureManagerBase
from matplotlib.backends.backend_agg import FigureCanvasAgg

from aster_sandbox.service.inside import display


class FigureManager(FigureManagerBase):
    """The manager of one pyplot figure."""

    def show(self) -> None:
        """Show the figure: called by ``plt.show()`` and ``fig.show()``."""
        display(self.canvas.figure)


class FigureCanvas(FigureCanvasAgg):
    """The Agg canvas, with this backend's manager."""

    manager_class = FigureManager
