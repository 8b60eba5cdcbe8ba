"""A position in a text, for the grammar."""

from __future__ import annotations

import re

from aster.grading.nodes import Unreadable

DEEPEST = 30
"""Deepest nesting of brackets that is read. Real answers have only a few levels."""


class Cursor:
    """A position in a text, and the depth of brackets at that position."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.depth = 0

    def space(self) -> None:
        text, at = self.text, self.at
        while at < len(text) and text[at].isspace():
            at += 1
        self.at = at

    def match(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        """Match the pattern here and move past it."""
        found = pattern.match(self.text, self.at)
        if found:
            self.at = found.end()
        return found

    def peek(self, *words: str) -> str | None:
        r"""Return the first of the words that is at this position. A command (``\le``) must not continue with a letter."""
        for word in words:
            if self.text.startswith(word, self.at) and not (
                word[0] == "\\" and word[-1].isalpha() and self.text[self.at + len(word) : self.at + len(word) + 1].isalpha()
            ):
                return word
        return None

    def take(self, *words: str) -> str | None:
        self.space()
        word = self.peek(*words)
        if word:
            self.at += len(word)
        return word

    def need(self, word: str) -> None:
        if not self.take(word):
            raise Unreadable(f"{word!r} is missing")

    def need_any(self, *words: str) -> None:
        if not self.take(*words):
            raise Unreadable(f"{words[0]!r} is missing")

    def deeper(self) -> None:
        self.depth += 1
        if self.depth > DEEPEST:
            raise Unreadable("nested too deeply")
