"""Write to a cell's output what the cell does not print itself: echoed values, figures and notes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, Protocol


class Output(Protocol):
    """A session's output streams (``streams.Streams``)."""

    def shows(self, stream: object) -> bool:
        """Whether ``stream`` is one of them."""

    def write(self, text: str) -> None:
        """Write to the output."""

    def flush(self) -> None:
        """Write out what is buffered."""


_streams: Output | None = None
_mark: Callable[[], str] = str
_notes: set[str] = set()
"""The notes of the current cell."""
_notes_mark = ""
"""The mark of that cell."""
home = "."
"""The session's working directory; in a program that a cell started, that program's."""
text_of: Callable[[Any], str] = repr
"""The function that formats an echoed value."""


def enter(streams: Output, mark: Callable[[], str], working_directory: str, echo: str) -> None:
    """Set this process up as a session process. ``mark`` returns the current cell's line mark; ``echo`` is the setting."""
    global _streams, _mark, home, text_of
    _streams, _mark, home = streams, mark, working_directory
    if echo == "ipython":
        text_of = pretty_printer()


def pretty_printer() -> Callable[[Any], str]:
    """The function with which IPython's prompt formats values. Raises ImportError if IPython is not installed."""
    from IPython.lib.pretty import pretty

    return pretty


def write(text: str) -> None:
    """Write a text on its own line, to where ``print`` writes."""
    if _streams is not None and _streams.shows(sys.stdout):
        _streams.write(f"{_mark()}{text}\n")
    else:
        sys.stdout.write(f"{text}\n")


def flush() -> None:
    """Write out what is buffered, before another process prints."""
    (_streams or sys.stdout).flush()


def note(text: str) -> None:
    """Write a text as ``write`` does, but only once per cell."""
    global _notes_mark
    if _notes_mark != _mark():
        _notes_mark = _mark()
        _notes.clear()
    if text not in _notes:
        _notes.add(text)
        write(text)
