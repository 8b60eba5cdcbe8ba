"""The matplotlib backend of cells (``MPLBACKEND=module://aster_sandbox.figures``). It draws with Agg; showing a figure saves it
to a file and prints one line that describes it."""

from __future__ import annotations

import contextlib
import itertools
import os
from typing import Any, BinaryIO

from matplotlib.backend_bases import FigureManagerBase
from matplotlib.backends.backend_agg import FigureCanvasAgg

from aster_sandbox import shown

LONGEST_TEXT = 100
MOST_AXES = 6
_numbers = itertools.count(1)


class FigureManager(FigureManagerBase):
    """The manager of one pyplot figure."""

    def show(self) -> None:
        """Show the figure: called by ``plt.show()`` and ``fig.show()``."""
        show_figure(self.canvas.figure)

    def destroy(self) -> None:
        """Do nothing when the figure is closed: it keeps its canvas, so that it can be shown again."""


class FigureCanvas(FigureCanvasAgg):
    """The Agg canvas, with this backend's manager."""

    manager_class = FigureManager


def show_figure(figure: Any) -> None:
    """Save a figure in the working directory, print a line that describes it, and close it, as a notebook's backend does."""
    number, path, file = _new_file()
    try:
        with file:
            draw(figure, file)
    except BaseException:
        os.unlink(path)
        raise
    name = os.path.basename(path) if _is_here(path) else path
    shown.write(f"[{'; '.join([*_described(number, figure), f'saved as {name}'])}]")


def draw(figure: Any, file: BinaryIO) -> None:
    """Write a figure as PNG and close it."""
    from matplotlib import pyplot

    try:
        figure.savefig(file, format="png", bbox_inches="tight")
    finally:
        pyplot.close(figure)


def _new_file() -> tuple[int, str, BinaryIO]:
    """The next figure's number, the path of its file and the new file."""
    while True:
        number = next(_numbers)
        path = os.path.join(shown.home, f"figure-{number}.png")
        with contextlib.suppress(FileExistsError):
            return number, path, open(path, "xb")


def _is_here(path: str) -> bool:
    try:
        return os.path.samefile(os.path.dirname(path), ".")
    except OSError:  # a cell removed its working directory
        return False


def _described(number: int, figure: Any) -> list[str]:
    parts = [_short(figure.get_suptitle(), '"{}"'), *_about_axes(figure.axes)]
    first, *others = [part for part in parts if part] or [""]
    return [f"figure {number}: {first}" if first else f"figure {number}", *others]


def _about_axes(axes: list[Any]) -> list[str]:
    described = [part for part in map(_about, axes) if part]
    if len(axes) < 2:
        return described
    parts = [f"({part})" for part in described[:MOST_AXES]]
    if len(described) > MOST_AXES:
        parts.append(f"and {len(described) - MOST_AXES} more")
    return [f"{len(axes)} axes" + (f": {', '.join(parts)}" if parts else "")]


def _about(axes: Any) -> str:
    """The title and labels of one plot."""
    title = next(filter(None, (axes.get_title(place) for place in ("center", "left", "right"))), "")
    labels = [(name, getattr(axes, f"get_{name}label", str)()) for name in "xyz"]
    labelled = ", ".join(_short(label, f"{name}: {{}}") for name, label in labels if label)
    return "; ".join(filter(None, [_short(title, '"{}"'), labelled]))


def _short(text: str, form: str) -> str:
    text = " ".join(text.split())
    if len(text) > LONGEST_TEXT:
        text = f"{text[: LONGEST_TEXT - 3]}..."
    return form.format(text) if text else ""
