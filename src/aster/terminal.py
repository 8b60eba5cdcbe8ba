"""What a long stage shows while it works: a live bar on a terminal, plain lines elsewhere. All of it goes to stderr."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import rich.progress

LINE_SECONDS = 5.0
"""Without a terminal, at most one line in so many seconds, besides the first and the last."""

_bars: rich.progress.Progress | None = None
"""The live display, shared by nested Progress objects: a terminal holds one."""
_nested = 0


def say(text: str) -> None:
    """Print a plain line to stderr, above a live bar if there is one."""
    if _bars is not None:
        _bars.console.print(text, markup=False, highlight=False, soft_wrap=True)
    else:
        print(text, file=sys.stderr, flush=True)


class Progress:
    """Progress of ``total`` units of work, as a context manager.

    ``done`` units were done before (a resumed stage); they count as done but not in the rate.
    """

    def __init__(self, title: str, total: int, unit: str, done: int = 0) -> None:
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
        """Count units as done. ``shown`` are the latest values to show by name; a name not given keeps its last value."""
        self.done += count
        self._shown |= shown
        if self._task is not None and _bars is not None:
            _bars.update(self._task, completed=self.done, status=self._status())
        elif time.monotonic() - self._printed_at >= LINE_SECONDS:
            self._print()

    def _status(self) -> str:
        """Rate, time left and the shown values."""
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
        # The rate alone does not make a line new: the last one is not printed twice.
        if line == self._printed:
            return
        self._printed, self._printed_at = line, time.monotonic()
        status = self._status()
        say(f"{line}, {status}" if status else line)


def _on_terminal() -> bool:
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


def _join_bars() -> rich.progress.Progress:
    """The shared live display, started by the first to join."""
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


def _number(value: float | str) -> str:
    """Three significant digits; from 1,000 on whole numbers."""
    if isinstance(value, str):
        return value
    return f"{value:,.0f}" if abs(value) >= 999.5 else f"{value:.3g}"


def _clock(seconds: float) -> str:
    """``m:ss`` or ``h:mm:ss``."""
    whole = round(seconds)
    minutes, second = divmod(whole, 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"
