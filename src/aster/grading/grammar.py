r"""Parse the text of an answer, in LaTeX or Python's spelling, into a tree.

The whole text must be in the grammar. Ambiguous texts (``1/2x``, ``\sin \pi/6``, two numbers side by side) are rejected,
because a wrong "equal" is worse than a missed one. The tree consists of :class:`aster.grading.nodes.Node`;
:mod:`aster.grading.value` evaluates it and :mod:`aster.grading.forms` compares two of them.

This module reads lists, relations, unions and units. :mod:`aster.grading.terms` reads the terms inside them.
"""

from __future__ import annotations

import re
from fractions import Fraction

from aster.grading.commands import TEXTUAL, WORD
from aster.grading.nodes import Node, Unreadable, Unsupported, product
from aster.grading.terms import AND_OR, DOTS, RELATION, TermReader
from aster.grading.words import MULTIPLIERS, unit_of

OPERATORS = {
    r"\leqslant": "<=", r"\leqq": "<=", r"\leq": "<=", r"\le": "<=", r"\geqslant": ">=", r"\geqq": ">=", r"\geq": ">=",
    r"\ge": ">=", r"\neq": "!=", r"\ne": "!=", r"\lt": "<", r"\gt": ">", r"\approx": "~", r"\in": "in", "==": "=",
}  # fmt: skip
POWER = re.compile(r"\s*\^\s*(?:\{\s*(-?[0-9]+)\s*\}|(-?[0-9]))")
MONEY = re.compile(r"\\\$|[€£¥]")


def parse(text: str, thousands: bool = True) -> Node:
    """Parse a whole text (as :func:`aster.grading.text.plain` returns it). Without ``thousands``, ``1,234`` is a list.

    Raises Unreadable, or Unsupported if Math-Verify may be able to read the text.
    """
    reader = Reader(text, thousands)
    node = reader.listing("")
    reader.space()
    if reader.at < len(text):
        raise Unreadable(f"cannot read {text[reader.at : reader.at + 12]!r}")
    return node


class Reader(TermReader):
    """Reads everything that an answer may consist of."""

    def listing(self, closers: str) -> Node:
        """Read items up to a closing delimiter or the end. Without ``closers``, a single item is returned as it is."""
        items = [self.item()]
        separators = set()
        while True:
            separator = self.separator()
            if separator is None:
                break
            separators.add(separator)
            self.space()
            if self.at == len(self.text) and separator == ",":
                break
            items.append(self.item())
        if len(items) == 1 and not closers:
            return items[0]
        return Node("list", tuple(items), "or" if separators == {"or"} else "and" if separators == {"and"} else ",")

    def separator(self) -> str | None:
        self.space()
        comma = self.take(",", ";")
        word = None
        self.space()
        found = self.match(AND_OR)
        if found:
            word = "or" if found[1] == "or" or found[2] == "or" or found[3] else "and"
        return "or" if word == "or" else "," if comma else word

    def item(self) -> Node:
        self.space()
        if self.match(DOTS):
            return Node("dots")
        return self.relation()

    def relation(self) -> Node:
        if self.round == 0 and self.at == 0:
            self.take("=", "\\approx")
        sides = [self.union()]
        operators = []
        while True:
            self.space()
            found = self.match(RELATION)
            if not found:
                break
            operator = OPERATORS.get(found[0], found[0])
            if operator.startswith("\\"):
                raise Unreadable(f"{found[0]} is not compared")
            operators.append(operator)
            sides.append(self.union())
        return Node("rel", tuple(sides), tuple(operators)) if operators else sides[0]

    def union(self) -> Node:
        members = [self.quantity()]
        while self.take("\\cup") or self._letter_u(members[-1]):
            members.append(self.quantity())
        if self.peek("\\cap", "\\setminus"):
            raise Unsupported("an intersection or a difference of sets")
        return Node("union", tuple(members)) if len(members) > 1 else members[0]

    def _letter_u(self, before: Node) -> bool:
        self.space()
        if before.kind == "tuple" and re.match(r"U\s*[\[(]", self.text[self.at :]):
            self.at += 1
            return True
        return False

    def quantity(self) -> Node:
        """Read a sum with its unit."""
        self.space()
        sign = -1 if self.text[self.at : self.at + 1] == "-" and MONEY.match(self.text, self.at + 1) else 1
        money = MONEY.match(self.text, self.at + (sign < 0))
        if money:
            self.at = money.end()
        node = self.sum()
        if money:
            return Node("unit", (node if sign > 0 else Node("neg", (node,)),), "$" if money[0] == "\\$" else money[0])
        return self.with_unit(node)

    def with_unit(self, node: Node) -> Node:
        self.space()
        start = self.at
        words, roman = [], False
        while self.at < len(self.text):
            self.space()
            textual = TEXTUAL.match(self.text, self.at)
            found = textual or WORD.match(self.text, self.at)
            percent = re.compile(r"\\?%").match(self.text, self.at)
            if percent:
                self.at = percent.end()
                words.append("%")
            elif found and not AND_OR.match(self.text, self.at):
                self.at = found.end()
                roman = roman or bool(textual)
                words.append(found[1] if textual else found[0])
            elif words and self.peek("/"):
                self.at += 1
                words.append("/")
            else:
                break
            power = POWER.match(self.text, self.at)
            if power:
                self.at = power.end()
                words.append(f"^{power[1] or power[2]}")
        if not words:
            return node
        unit = unit_of(words, roman)
        if unit is None:
            self.at = start
            return node
        factor = MULTIPLIERS.get(unit)
        if factor:
            return product(node, Node("num", (), (Fraction(factor), None)))
        return Node("pct", (node,)) if unit == "%" else Node("deg", (node,)) if unit == "°" else Node("unit", (node,), unit)
