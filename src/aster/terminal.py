"""What people read on a terminal: messages, the progress of long work, tables in plain text.

Messages and progress go to stderr, as a live bar on a terminal and as plain lines elsewhere.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import rich.progress

LINE_SECONDS = 5.0
"""Without a terminal, seconds between two lines of progress; the first and the last are always printed."""

_bars: rich.progress.Progress | None = None
"""The live display. A terminal has room for one only, so nested Progress objects share it."""
_nested = 0
"""How many share it."""


def say(text: str) -> None:
    """Print a plain line to stderr, above a live bar if there is one."""
    if _bars is not None:
        _bars.console.print(text, markup=False, highlight=False, soft_wrap=True)
    else:
        print(text, file=sys.stderr, flush=True)


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """A table's lines, from its rows of cells: the first column left-aligned, the others right-aligned, a rule below the first
    row."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(_pad(cell, width, column) for column, (cell, width) in enumerate(zip(row, widths, strict=True))).rstrip()
        for row in rows
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return lines


class Progress:
    """The progress of ``total`` units of work, as a context manager."""

    def __init__(self, title: str, total: int, unit: str, done: int = 0) -> None:
        """``done`` units were done before (a resumed stage); they count as done but not in the rate."""
        self.title = title
        self.total = total
        self.unit = unit
        self.done = done
        self._before = done
        self._shown: dict[str, float | str] = {}
        self._began = time.monotonic()
        self._printed_at = 0.0
        self._printed = ""
        self._task: rich.progress.TaskID | None = None

    def __enter__(self) -> Progress:
        self._began = time.monotonic()
        if _on_terminal():
            self._task = _join_bars().add_task(self.title, total=self.total, completed=self.done, unit=self.unit, status="")
        else:
            self._print()
        return self

    def __exit__(self, *_: object) -> None:
        if self._task is not None:
            self._task = None
            _leave_bars()
        else:
            self._print()

    def advance(self, count: int = 1, **shown: float | str) -> None:
        """Count units as done. ``shown``: values to show, by name; a name that is not given keeps its last value."""
        self.done += count
        self._shown |= shown
        if self._task is not None and _bars is not None:
            _bars.update(self._task, completed=self.done, status=self._status())
        elif time.monotonic() - self._printed_at >= LINE_SECONDS:
            self._print()

    def _status(self) -> str:
        """The rate, the time left and the values to show."""
        parts = []
        fresh = self.done - self._before
        elapsed = time.monotonic() - self._began
        if fresh > 0 and elapsed > 0:
            parts.append(f"{_number(fresh / elapsed)} {self.unit}/s")
            if self.done < self.total:
                parts.append(f"{_clock((self.total - self.done) * elapsed / fresh)} left")
        parts += [f"{name.replace('_', ' ')} {_number(value)}" for name, value in self._shown.items()]
        return ", ".join(parts)

    def _print(self) -> None:
        line = f"{self.title}: {self.done}/{self.total} {self.unit}"
        # The last line is not printed twice because of another rate.
        if line == self._printed:
            return
        self._printed, self._printed_at = line, time.monotonic()
        status = self._status()
        say(f"{line}, {status}" if status else line)


def _on_terminal() -> bool:
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


def _join_bars() -> rich.progress.Progress:
    """The shared live display; the first to join starts it."""
    global _bars, _nested
    if _bars is None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bars

        _bars = Bars(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]}", markup=False),
            TimeElapsedColumn(),
            TextColumn("{task.fields[status]}", markup=False),
            console=Console(stderr=True),
        )
        _bars.start()
    _nested += 1
    return _bars


def _leave_bars() -> None:
    """Leave the shared display; the last to leave stops it."""
    global _bars, _nested
    _nested -= 1
    if _nested == 0 and _bars is not None:
        _bars.stop()
        _bars = None


def _pad(cell: str, width: int, column: int) -> str:
    return cell.ljust(width) if column == 0 else cell.rjust(width)


def _number(value: float | str) -> str:
    """Three significant digits; a whole number from 1,000 on."""
    if isinstance(value, str):
        return value
    return f"{value:,.0f}" if abs(value) >= 999.5 else f"{value:.3g}"


def _clock(seconds: float) -> str:
    """``m:ss`` or ``h:mm:ss``."""
    whole = round(seconds)
    minutes, second = divmod(whole, 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"
