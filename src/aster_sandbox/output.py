"""What is kept of a cell's output: all of it while it is short, else its head and tail."""

from __future__ import annotations

import codecs
import os

from aster_sandbox.protocol import FIRST_READ_BYTES, READ_BYTES

NO_OUTPUT = "[no output]"
LONGEST_LINE = 4096
"""Characters of a line that are held back, because a carriage return may still overwrite them."""


class Clip:
    """Takes bytes without end and keeps at most ``1.5 * limit`` characters of them, and one line.

    A carriage return overwrites its line, as on a terminal: of a progress bar the last state is kept.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._tail_length = limit // 2
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.begin("")

    def begin(self, mark: str = "") -> None:
        """Forget everything taken so far. Where ``mark`` comes, a new line begins, if none has."""
        self._mark = mark.encode()
        self._bytes = b""
        self._decoder.reset()
        self._head = ""
        self._tail = ""
        self._total = 0
        self._line = ""

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the output (UTF-8; what is not becomes U+FFFD)."""
        mark = self._mark
        if mark and (self._bytes or b"\0" in data):
            data = self._bytes + data
            while (place := data.find(mark)) >= 0:
                if place:
                    self._take(self._decoder.decode(data[:place]))
                if self._line:
                    self._take("\n")
                data = data[place + len(mark) :]
            # A mark may be cut in two: its beginning waits for the rest.
            place = data.rfind(b"\0", -len(mark))
            if place >= 0 and mark.startswith(data[place:]):
                data, self._bytes = data[:place], data[place:]
            else:
                self._bytes = b""
        self._take(self._decoder.decode(data))

    def drain(self, descriptor: int, at_most: int) -> int | None:
        """Take what a non-blocking descriptor holds, up to about ``at_most`` bytes. Returns how many; None at its end."""
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
        """The output so far, cut in its middle where it is longer than the limit, without its last line end."""
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
        """The unfinished line is held back."""
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
    """A line without what carriage returns overwrote."""
    if "\r" not in line:
        return line
    return line.rstrip("\r").rpartition("\r")[2]
