"""What a session's process writes into its output beside what cells print: echoes, figures, notes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, Protocol


class Output(Protocol):
    """A session's streams."""

    def shows(self, stream: object) -> bool:
        """Whether what is written to a stream gets into the output as it is."""

    def write(self, text: str) -> None:
        """Write to the output."""

    def flush(self) -> None:
        """Push what was written to its end."""


_streams: Output | None = None
_mark: Callable[[], str] = str
_said: set[str] = set()
_said_in = ""
home = "."
"""A session's working directory; in a program that a cell started, that program's."""
text_of: Callable[[Any], str] = repr
"""A value as it is shown."""


def enter(streams: Output, mark: Callable[[], str], working_directory: str, echo: str) -> None:
    """From here on, this process is a session's. ``mark`` gives what begins a new line in the present cell's output."""
    global _streams, _mark, home, text_of
    _streams, _mark, home = streams, mark, working_directory
    if echo == "ipython":
        text_of = pretty_printer()


def pretty_printer() -> Callable[[Any], str]:
    """How IPython shows a value. ImportError where it is not installed."""
    from IPython.lib.pretty import pretty

    return pretty  # its defaults are those of IPython's prompt


def write(text: str) -> None:
    """A text on a line of its own, to wherever ``print`` writes."""
    if _streams is not None and _streams.shows(sys.stdout):
        _streams.write(f"{_mark()}{text}\n")
    else:
        sys.stdout.write(f"{text}\n")


def flush() -> None:
    """Push what was printed to its end, before another process prints."""
    (_streams or sys.stdout).flush()


def note(text: str) -> None:
    """As ``write``, once in each cell."""
    global _said_in
    if _said_in != _mark():
        _said_in = _mark()
        _said.clear()
    if text not in _said:
        _said.add(text)
        write(text)


def display(*values: Any, **_options: Any) -> None:
    """Show values: each as at the end of a cell, a matplotlib figure as one line about it."""
    figures = sys.modules.get("matplotlib.figure")
    for value in values:
        if figures is not None and isinstance(value, figures.Figure):
            from aster_sandbox.figures import show_figure

            show_figure(value)
        else:
            write(text_of(value))
