"""Where a line of a cell begins a statement, and which parts of it are code; also for text that is no Python yet."""

from __future__ import annotations

import re

_TOKEN = re.compile(r"'''|\"\"\"|['\"#\[({\])}]")
_OPENING, _CLOSING = "([{", ")]}"


def split_lines(source: str) -> list[str]:
    """The lines as the compiler counts them."""
    return re.split(r"\r\n|\r|\n", source)


def end_of_string(text: str, start: int, quote: str) -> int:
    """Where a string ends whose content begins at ``start``; -1 where it does not."""
    while (place := text.find(quote[0], start)) >= 0:
        backslashes = len(text[start:place]) - len(text[start:place].rstrip("\\"))
        if backslashes % 2:
            start = place + 1
        elif text.startswith(quote, place):
            return place + len(quote)
        else:
            start = place + 1
    return -1


class Reader:
    """Follows a cell line by line, as far as its strings, brackets and continued lines go."""

    def __init__(self) -> None:
        self.quote = ""
        """Of the string that the next line begins in."""
        self._depth = 0
        self._continued = False

    @property
    def fresh(self) -> bool:
        """Whether the next line begins a statement."""
        return not (self.quote or self._depth or self._continued)

    def pieces(self, line: str) -> list[tuple[bool, str]]:
        """Take a line. Its parts, each with whether it is code: strings and comments are not."""
        found: list[tuple[bool, str]] = []
        place = 0
        self._continued = False
        while True:
            if self.quote:
                end = end_of_string(line, place, self.quote)
                if end < 0:
                    found.append((False, line[place:]))
                    if len(self.quote) == 1 and not line.endswith("\\"):
                        self.quote = ""  # it lacks its end, which is the cell's fault
                    return found
                found.append((False, line[place:end]))
                self.quote = ""
                place = end
                continue
            token = _TOKEN.search(line, place)
            if token is None:
                found.append((True, line[place:]))
                self._continued = line.endswith("\\")
                return found
            found.append((True, line[place : token.start()]))
            place = token.end()
            if token[0] == "#":
                found.append((False, line[token.start() :]))
                return found
            if token[0] in _OPENING or token[0] in _CLOSING:
                self._depth = max(0, self._depth + (1 if token[0] in _OPENING else -1))
                found.append((True, token[0]))
            else:
                found.append((False, token[0]))
                self.quote = token[0]
