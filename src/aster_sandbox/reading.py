"""A line reader for cells: which lines begin a statement, and which parts of a line are code. Works on invalid Python too."""

from __future__ import annotations

import re

_TOKEN = re.compile(r"'''|\"\"\"|['\"#\[({\])}]")
_OPENING, _CLOSING = "([{", ")]}"


def split_lines(source: str) -> list[str]:
    """Split source into lines as the compiler counts them."""
    return re.split(r"\r\n|\r|\n", source)


def end_of_string(text: str, start: int, quote: str) -> int:
    """The index after the closing ``quote`` of a string whose content begins at ``start``; -1 if it is not closed."""
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
    """Follows a cell line by line and tracks open strings, brackets and continued lines."""

    def __init__(self) -> None:
        self.quote = ""
        """The quote of the string in which the next line begins; empty if it begins outside a string."""
        self._depth = 0
        self._continued = False

    @property
    def fresh(self) -> bool:
        """Whether the next line begins a statement."""
        return not (self.quote or self._depth or self._continued)

    def pieces(self, line: str) -> list[tuple[bool, str]]:
        """Read the next line. Returns its parts as pairs of whether it is code and the text; strings and comments are not
        code."""
        found: list[tuple[bool, str]] = []
        place = 0
        self._continued = False
        while True:
            if self.quote:
                end = end_of_string(line, place, self.quote)
                if end < 0:
                    found.append((False, line[place:]))
                    if len(self.quote) == 1 and not line.endswith("\\"):
                        self.quote = ""  # an unterminated string: an error of the cell
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
