"""Collect a cell's output: all of it if it is short, else its head and tail."""

from __future__ import annotations

import codecs
import os

from aster_sandbox.protocol import FIRST_READ_BYTES, READ_BYTES

NO_OUTPUT = "[no output]"
LONGEST_LINE = 4096
"""Maximum length of an unfinished line that is held back because a carriage return may still overwrite it, in characters."""


class Clip:
    """Takes any amount of output and keeps at most ``1.5 * limit`` characters of it, plus one unfinished line.

    A carriage return overwrites its line, as on a terminal, so only the last state of a progress bar is kept.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._tail_length = limit // 2
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.begin("")

    def begin(self, mark: str = "") -> None:
        """Start the output of another cell. Where ``mark`` occurs in it, a new line begins unless one already has."""
        self._mark = mark.encode()
        self._bytes = b""
        self._decoder.reset()
        self._head = ""
        self._tail = ""
        self._total = 0
        self._line = ""

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the output, in UTF-8; invalid bytes become U+FFFD."""
        mark = self._mark
        if mark and (self._bytes or b"\0" in data):
            data = self._bytes + data
            while (place := data.find(mark)) >= 0:
                if place:
                    self._take(self._decoder.decode(data[:place]))
                if self._line:
                    self._take("\n")
                data = data[place + len(mark) :]
            # The data may end within a mark: hold its beginning back until the rest comes.
            place = data.rfind(b"\0", -len(mark))
            if place >= 0 and mark.startswith(data[place:]):
                data, self._bytes = data[:place], data[place:]
            else:
                self._bytes = b""
        self._take(self._decoder.decode(data))

    def drain(self, descriptor: int, at_most: int) -> int | None:
        """Read a non-blocking descriptor until it is empty, up to about ``at_most`` bytes. Returns how many bytes; None at its
        end."""
        taken, size = 0, FIRST_READ_BYTES
        while taken < at_most:
            try:
                data = os.read(descriptor, size)
            except BlockingIOError:
                break
            if not data:
                return None
            taken += len(data)
            self.feed(data)
            size = READ_BYTES
        return taken

    def text(self) -> str:
        """The output so far without its last newline, cut in the middle if it is longer than the limit."""
        if rest := self._decoder.decode(self._bytes, final=True):
            self._take(rest)
        if self._line:
            self._keep(_folded(self._line))
        self._bytes, self._line = b"", ""
        if self._total <= self.limit:
            return self._head.removesuffix("\n")
        head = self._head[: self.limit - self._tail_length]
        tail = (self._head + self._tail)[-self._tail_length :] if self._tail_length else ""
        cut = self._total - len(head) - len(tail)
        return f"{head}\n[... {cut} characters cut ...]\n{tail.removesuffix(chr(10))}"

    def _take(self, text: str) -> None:
        """Add text; its unfinished last line is held back."""
        if self._line:
            text = self._line + text
        lines, end, self._line = text.rpartition("\n")
        if "\r" in lines:
            lines = "\n".join(map(_folded, lines.split("\n")))
        self._keep(lines + end)
        if len(self._line) > LONGEST_LINE:
            self._line = _folded(self._line)
            if len(self._line) > LONGEST_LINE:
                self._keep(self._line[:-1])
                self._line = self._line[-1:]

    def _keep(self, text: str) -> None:
        self._total += len(text)
        room = self.limit - len(self._head)
        if room > 0:
            self._head += text[:room]
            text = text[room:]
        if text and self._tail_length:
            self._tail = (self._tail + text)[-self._tail_length :]


def _folded(line: str) -> str:
    """A line without the parts that carriage returns overwrote."""
    if "\r" not in line:
        return line
    return line.rstrip("\r").rpartition("\r")[2]
