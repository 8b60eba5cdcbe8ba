r"""Read an answer as an expression, words, the letter of a choice, or a number in another base."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

from aster.grading import grammar, numerals
from aster.grading.commands import TEXTUAL
from aster.grading.nodes import Node, Unreadable, Unsupported
from aster.grading.text import plain

CHOICE = re.compile(
    r"(?:\\(?:text|textbf|mathrm|mathbf)\s*\{\s*)?(?:\(\s*(?:\\(?:text|mathrm)\s*\{)?([A-J])\}?\s*\)|([A-J])\s*[).:])\s*\}?\s*(?P<rest>.*)",
    re.DOTALL,
)
MORE = re.compile(r"^[-+*/^_=<>!,;&(]|^\\(?:c[au]p|cdot|times)|\b(?:and|or|nor|not)\b|\(\s*[A-J]\s*\)|^[A-J][).:]|^[A-J]$")
"""Text after a letter that shows that it is not the letter of a choice: an operator, or a second choice."""
LETTER = re.compile(r"[A-J]")
BASE = re.compile(r"\(?\s*([0-9A-F]+)\s*\)?\s*_\s*(?:\{\s*(?:\\(?:text|mathrm)\s*\{)?\s*([0-9]+|[a-z]+)\s*\}?\s*\}|([0-9]))")
BASES = {
    "two": "2",
    "three": "3",
    "four": "4",
    "five": "5",
    "six": "6",
    "seven": "7",
    "eight": "8",
    "nine": "9",
    "ten": "10",
    "sixteen": "16",
}
MONEY = str.maketrans("", "", "€£¥")
NOUNS = {"real numbers": "R", "reals": "R", "all real numbers": "R", "all reals": "R"}
SHORT = frozenset(["yes", "no", "dne", "odd", "even", "all", "any", "none", "true", "nan", "one", "two", "six", "ten", "not"])
COLON = re.compile(r"[^:=<>]+(?::[^:=<>]+)+")


class Reading(NamedTuple):
    """A parsed answer. ``kind`` is tree, words, choice, base, ratio, unreadable or unsupported."""

    kind: str
    node: Node | None
    text: str
    """The words, the letter or the digits; for other kinds, the text that was read."""
    detail: str = ""
    """The base, or the reason why the answer cannot be read."""
    listed: Node | None = None
    """The tree with ``1,234`` as a list, if it differs from ``node``."""


@lru_cache(maxsize=2048)
def read(text: str) -> Reading:
    """Read an answer. Never raises on any text."""
    text = plain(text)
    if not text:
        return Reading("unreadable", None, "", "empty")
    if not text.translate(MONEY).isascii():
        return Reading("unreadable", None, text, "an unknown character")
    choice = CHOICE.fullmatch(text)
    if choice and not MORE.search(choice["rest"]):
        return Reading("choice", None, choice[1] or choice[2], choice["rest"])
    base = BASE.fullmatch(text)
    if base:
        name = base[2] or base[3]
        if name in BASES or name.isdigit():
            return Reading("base", None, base[1], BASES.get(name, name))
    words = as_words(text)
    if words is not None:
        if words in NOUNS:
            return Reading("tree", Node("symbol", (), NOUNS[words]), text)
        return Reading("words", None, words)
    if COLON.fullmatch(text):
        return Reading("ratio", None, re.sub(r"\s+", "", text))
    try:
        node = grammar.parse(text)
        if numerals.COMMAS.search(text) and ",0" not in text:
            listed = grammar.parse(text, thousands=False)
            return Reading("tree", node, text, listed=None if listed == node else listed)
    except Unsupported as error:
        balanced = text.count("{") == text.count("}") and text.count("\\begin") == text.count("\\end")
        return Reading("unsupported" if balanced else "unreadable", None, text, str(error))
    except Unreadable as error:
        return Reading("unreadable", None, text, str(error))
    return Reading("tree", node, text)


def as_words(text: str) -> str | None:
    r"""Return the text in lower case if it is words and not mathematics, else None. ``\text{}`` is ignored."""
    text = re.sub(r"\s+", " ", TEXTUAL.sub(lambda found: f" {found[1]} ", text)).strip(" .")
    if not re.fullmatch(r"[A-Za-z][A-Za-z' ,-]*", text):
        return None
    runs = re.findall(r"[A-Za-z]+", text)
    if len(runs) == 1 and len(text) <= 3:
        # Short words may be names, in which case matters: AB is not ab.
        if len(text) == 1 or text in ("pi", "oo", "inf"):
            return None
        return text.casefold() if text.casefold() in SHORT else text
    if not any(len(run) > 3 for run in runs) and not all(len(run) > 1 for run in runs):
        return None
    if text.casefold() in ("infinity", "alpha", "beta", "gamma", "theta", "lambda"):
        return None
    return text.casefold()
