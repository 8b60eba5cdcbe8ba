"""The standard streams of a session's process, as each cell must find them, whatever the last one did to them."""

from __future__ import annotations

import sys
from contextlib import suppress
from fcntl import F_SETFL, fcntl
from io import BufferedReader, BufferedWriter, FileIO, TextIOWrapper
from os import dup2
from typing import Any

# Descriptors above what careless cells close, and below the least limit that a recipe may set.
CONNECTION, OUTPUT, EMPTY = 500, 501, 502
FLOOD_WRITES = 2000
"""After so many writes in one cell they are no longer made line by line: the middle of such an output is cut anyway."""


class Streams:
    """stdin, which is empty, and one stream for stdout and stderr, which keeps the order of what is written to them.

    It writes line by line, so that what a subprocess prints falls into its place and what was printed before a crash is there.
    """

    def __init__(self) -> None:
        self._make()

    def restore(self) -> None:
        """Give a cell its streams. OSError where that is impossible."""
        self._install()  # first of all: what was there may close a descriptor, or our buffer, as it goes
        dup2(EMPTY, 0)
        dup2(OUTPUT, 1)
        dup2(OUTPUT, 2)
        fcntl(1, F_SETFL, 0)  # blocking; no packets, no signals
        if not self._is_intact():
            self._make()
            self._install()
        self._pipe.left = FLOOD_WRITES

    def _install(self) -> None:
        sys.stdin = sys.__stdin__ = self._input  # type: ignore[misc]
        sys.stdout = sys.stderr = sys.__stdout__ = sys.__stderr__ = self._lines  # type: ignore[misc]

    def write(self, text: str) -> None:
        """Write to the output, whatever ``sys.stdout`` is."""
        self._blocks.flush()
        self._lines.write(text)

    def shows(self, stream: object) -> bool:
        """Whether what is written to a stream gets into the output as it is."""
        return stream is self._lines or stream is self._blocks

    def flush(self, again: bool = False) -> None:
        """Push everything into the pipe: a cell has ended."""
        names = sys.__dict__
        streams = (names.get("stdout"), names.get("stderr"), self._lines, self._blocks)
        stuck = False
        for stream in {id(stream): stream for stream in streams if stream is not None}.values():
            # Cells may leave anything there: their own output is all that is lost.
            try:
                stream.flush()
            except BaseException:  # noqa: BLE001
                stuck |= self.shows(stream)
        if stuck and not again:  # they closed the descriptor below: what waits for it would come in the next cell
            with suppress(OSError):  # where a limit of the cell's forbids it, the next cell's beginning tells
                dup2(OUTPUT, 1)
                fcntl(1, F_SETFL, 0)
                self.flush(again=True)

    def _is_intact(self) -> bool:
        """Whether all streams can be used as they are. A cell may have closed, detached or set up anew each part of them."""
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
                # What a cell puts in the place of a method is kept here, and so is what ours note.
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
        """From here on, until the end of the cell, write in blocks."""
        if sys.stdout is self._lines:
            sys.stdout = self._blocks
        if sys.stderr is self._lines:
            sys.stderr = self._blocks


class _Text(TextIOWrapper):
    """Notes that it was set up in another way: its line ends cannot be asked for."""

    def reconfigure(self, **options: Any) -> None:
        """Reconfigure, and remember that it happened."""
        super().reconfigure(**options)
        self.changed = True


class _Empty(FileIO):
    """Descriptor 0. Notes that something was there to read: some of it may wait in a buffer."""

    def readinto(self, buffer: Any, /) -> int | None:
        """Read, and remember whether there was something."""
        count = super().readinto(buffer)
        if count:
            self.used = True
        return count


class _Pipe(FileIO):
    """Descriptor 1."""

    def __init__(self, streams: Streams) -> None:
        super().__init__(1, "w", closefd=False)
        self._streams = streams
        self.left = FLOOD_WRITES
        """Writes until there are so many that they are a flood."""

    def write(self, data: object, /) -> int:
        """To the descriptor."""
        self.left -= 1
        if self.left == 0:
            self._streams.flood()
        return super().write(data)  # type: ignore[arg-type]
