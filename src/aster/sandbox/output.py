"""What is kept of a cell's output: all of it while it is short, else its head and tail."""

from __future__ import annotations

import codecs
import os

READ_BYTES = 1 << 16
NO_OUTPUT = "[no output]"


class Clip:
    """Takes bytes without end and keeps at most ``1.5 * limit`` characters of them."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._tail_length = limit // 2
        self.clear()

    def clear(self) -> None:
        """Forget everything taken so far."""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._head = ""
        self._tail = ""
        self._total = 0

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the output (UTF-8; what is not becomes U+FFFD)."""
        self._take(self._decoder.decode(data))

    def drain(self, descriptor: int, at_most: int) -> int | None:
        """Take what a non-blocking descriptor holds, up to about ``at_most`` bytes. Returns how many; None at its end."""
        taken = 0
        while taken < at_most:
            try:
                data = os.read(descriptor, READ_BYTES)
            except BlockingIOError:
                break
            if not data:
                return None
            taken += len(data)
            self.feed(data)
            if len(data) < READ_BYTES:
                break  # that was all
        return taken

    def text(self) -> str:
        """The output so far, cut in its middle where it is longer than the limit, without its last line end."""
        self._take(self._decoder.decode(b"", final=True))
        if self._total <= self.limit:
            return self._head.removesuffix("\n")
        head = self._head[: self.limit - self._tail_length]
        tail = (self._head + self._tail)[-self._tail_length :] if self._tail_length else ""
        cut = self._total - len(head) - len(tail)
        return f"{head}\n[... {cut} characters cut ...]\n{tail.removesuffix(chr(10))}"

    def _take(self, text: str) -> None:
        self._total += len(text)
        room = self.limit - len(self._head)
        if room > 0:
            self._head += text[:room]
            text = text[room:]
        if text and self._tail_length:
            self._tail = (self._tail + text)[-self._tail_length :]
