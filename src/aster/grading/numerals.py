r"""The part of the grammar that reads numbers: ``1,234.5``, ``0.1\overline{6}``, ``2e-3``, ``2 1/3``, ``1\frac{1}{2}``."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import TYPE_CHECKING

from aster.grading.nodes import Node, Unreadable

if TYPE_CHECKING:
    from aster.grading.terms import TermReader

LONGEST_NUMBER = 4000
"""Largest number of digits of one number."""
NUM = re.compile(
    r"(?P<whole>[0-9]+)?(?:\.(?P<part>[0-9]*))?(?:\\overline\s*\{(?P<again>[0-9]+)\}|(?P<dots>\.\.\.|\\l?dots|\\cdots))?"
    r"(?:[eE](?P<exponent>[+-]?[0-9]{1,6})(?![0-9A-Za-z.]))?"
)
COMMAS = re.compile(r"[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])(?!,[0-9])")
SPACES = re.compile(r"[0-9]{1,3}(?: [0-9]{3})+(?![0-9])(?! *[0-9])")
EXPONENT = re.compile(r"(?:\^|\*\*)\s*-?\s*$")
MIXED = re.compile(
    r"\s*(?:\\frac\s*(?:\{\s*([0-9]+)\s*\}|([0-9]))\s*(?:\{\s*([0-9]+)\s*\}|([0-9]))|(?<= )([0-9]+)/([0-9]+))(?![0-9^!])"
)


def read(reader: TermReader) -> Node:
    """Read a number: an integer, a decimal, a repeating decimal, ``1e5``, with thousands separators, or a mixed number."""
    text = reader.text
    # x^2\frac{1}{2} is x^2 times 1/2: without braces, only the digits belong to the exponent.
    raised = EXPONENT.search(text, max(0, reader.at - 8), reader.at) is not None
    grouped = COMMAS.match(text, reader.at) if reader.thousands and reader.round == 0 else None
    grouped = grouped or SPACES.match(text, reader.at)
    if grouped and not raised and not text[: reader.at].endswith((".", "_")):
        reader.at = grouped.end()
        digits = re.sub("[ ,]", "", grouped[0])
        decimals = re.compile(r"\.([0-9]*)(?![0-9.])").match(text, reader.at)
        if decimals:
            reader.at = decimals.end()
        return _value(digits, decimals[1] if decimals else None, None, 0)
    found = NUM.match(text, reader.at)
    if not found or not (found["whole"] or found["part"]):
        raise Unreadable("not a number")
    dots = found["dots"]
    if (found["again"] or dots) and found["part"] is None:
        # 3\overline{4} is not a decimal, and 5... is the number 5 followed by dots.
        if found["again"]:
            raise Unreadable("a bar over digits")
        reader.at = found.end("whole")
        return _value(found["whole"], None, None, 0)
    reader.at = found.end()
    part, again = found["part"], found["again"]
    if dots:
        cycle = re.search(r"([0-9])\1{2,}$|([0-9]{2,3})\2+$", part)
        if not cycle:
            raise Unreadable("a decimal that continues without a visible period")
        again = cycle[1] or cycle[2]
    if reader.peek("_"):
        raise Unreadable("a number with a subscript")
    node = _value(found["whole"] or "0", part, again, int(found["exponent"] or 0))
    if node.data[1] is None and not found["exponent"] and not raised:
        mixed = MIXED.match(text, reader.at)
        if mixed:
            above, below = mixed[1] or mixed[2] or mixed[5], mixed[3] or mixed[4] or mixed[6]
            if max(len(above), len(below)) < 50 and 0 < int(above) < int(below):
                reader.at = mixed.end()
                return Node("num", (), (node.data[0] + Fraction(int(above), int(below)), None))
    return node


def _value(whole: str, part: str | None, again: str | None, exponent: int) -> Node:
    digits = whole + (part or "")
    if len(digits) > LONGEST_NUMBER or abs(exponent) > LONGEST_NUMBER:
        raise Unreadable("too large: a number of thousands of digits")
    places = len(part) if part else 0
    number = Fraction(int(digits), 10**places)
    if again:
        number += Fraction(int(again), (10 ** len(again) - 1) * 10**places)
    number *= Fraction(10) ** exponent
    return Node("num", (), (number, places - exponent if part and not again else None))
