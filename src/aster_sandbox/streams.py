"""The standard streams of a session process, restored for each cell whatever the last one did to them."""

from __future__ import annotations

import sys
from contextlib import suppress
from fcntl import F_SETFL, fcntl
from io import BufferedReader, BufferedWriter, FileIO, TextIOWrapper
from os import dup2
from typing import Any

# Descriptor numbers above those that cells tend to close, and below the smallest limit of open files (512).
CONNECTION, OUTPUT, EMPTY = 500, 501, 502
FLOOD_WRITES = 2000
"""After so many writes of one cell, output is written in blocks, not lines: the middle of such an output is cut anyway."""


class Streams:
    """An empty stdin, and one output stream for stdout and stderr together, so that their order is kept.

    Output is written line by line, so that it is ordered with that of subprocesses and nothing is lost in a crash.
    """

    def __init__(self) -> None:
        self._make()

    def restore(self) -> None:
        """Restore the streams for the next cell. Raises OSError if that is impossible."""
        self._install()  # first, because the objects it replaces may close a descriptor or our buffer when they are deleted
        dup2(EMPTY, 0)
        _connect_stdout()
        dup2(OUTPUT, 2)
        if not self._is_intact():
            self._make()
            self._install()
        self._pipe.left = FLOOD_WRITES

    def _install(self) -> None:
        sys.stdin = sys.__stdin__ = self._input  # type: ignore[misc]
        sys.stdout = sys.stderr = sys.__stdout__ = sys.__stderr__ = self._lines  # type: ignore[misc]

    def write(self, text: str) -> None:
        """Write to the output, whatever ``sys.stdout`` is now."""
        self._blocks.flush()
        self._lines.write(text)

    def shows(self, stream: object) -> bool:
        """Whether ``stream`` is one of the session's own output streams."""
        return stream is self._lines or stream is self._blocks

    def flush(self, again: bool = False) -> None:
        """Write all buffered output into the pipe at the end of a cell."""
        names = sys.__dict__
        streams = (names.get("stdout"), names.get("stderr"), self._lines, self._blocks)
        stuck = False
        for stream in {id(stream): stream for stream in streams if stream is not None}.values():
            # Cells may leave any object there; if it fails, only the cell's own output is lost.
            try:
                stream.flush()
            except BaseException:  # noqa: BLE001
                stuck |= self.shows(stream)
        if stuck and not again:  # the cell closed descriptor 1; without this its output would appear in the next cell
            with suppress(OSError):  # if a limit of the cell forbids it, it fails again before the next cell, which reports it
                _connect_stdout()
                self.flush(again=True)

    def _is_intact(self) -> bool:
        """Whether the streams are as ``_make`` left them. A cell may have closed, detached or reconfigured any part of them."""
        try:
            lines, blocks = self._lines, self._blocks
            return (
                lines.line_buffering
                and lines.buffer is self._buffer is blocks.buffer
                and lines.encoding == blocks.encoding == "utf-8"
                and lines.errors == blocks.errors == "backslashreplace"
                and not self._buffer.closed
                and not self._input.closed
                and self._input.buffer is self._input_buffer
                and self._input_buffer.raw is self._input_file
                # Methods that a cell replaced are in __dict__, and so is what the classes below record.
                and not (lines.__dict__ or blocks.__dict__ or self._buffer.__dict__ or self._input.__dict__)
                and not self._input_buffer.__dict__
                and (len(self._input_file.__dict__), len(self._pipe.__dict__)) == self._sizes
            )
        except Exception:  # noqa: BLE001 - a detached stream raises at every touch
            return False

    def _make(self) -> None:
        self._pipe = _Pipe(self)
        self._buffer = BufferedWriter(self._pipe)
        self._lines = _Text(self._buffer, "utf-8", "backslashreplace", "\n", line_buffering=True)
        self._blocks = _Text(self._buffer, "utf-8", "backslashreplace", "\n")
        self._input_file = _Empty(0, closefd=False)
        self._input_buffer = BufferedReader(self._input_file)
        self._input = _Text(self._input_buffer, "utf-8")
        self._sizes = len(self._input_file.__dict__), len(self._pipe.__dict__)

    def flood(self) -> None:
        """Write in blocks until the end of the cell."""
        if sys.stdout is self._lines:
            sys.stdout = self._blocks
        if sys.stderr is self._lines:
            sys.stderr = self._blocks


class _Text(TextIOWrapper):
    """Records that it was reconfigured, because its newline setting cannot be read."""

    def reconfigure(self, **options: Any) -> None:
        """Reconfigure, and record that it happened."""
        super().reconfigure(**options)
        self.changed = True


class _Empty(FileIO):
    """Descriptor 0. Records that data was read, because the rest of it may be in a buffer."""

    def readinto(self, buffer: Any, /) -> int | None:
        """Read, and record whether there was data."""
        count = super().readinto(buffer)
        if count:
            self.used = True
        return count


class _Pipe(FileIO):
    """Descriptor 1. Counts writes."""

    def __init__(self, streams: Streams) -> None:
        super().__init__(1, "w", closefd=False)
        self._streams = streams
        self.left = FLOOD_WRITES
        """Writes that remain before output is written in blocks."""

    def write(self, data: object, /) -> int:
        """Write to the descriptor."""
        self.left -= 1
        if self.left == 0:
            self._streams.flood()
        return super().write(data)  # type: ignore[arg-type]


def _connect_stdout() -> None:
    """Connect descriptor 1 to the output pipe, in blocking mode and without packet mode or signals. Raises OSError."""
    dup2(OUTPUT, 1)
    fcntl(1, F_SETFL, 0)
