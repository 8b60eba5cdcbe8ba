"""The tree of an answer: what the grammar makes, and what is computed with and compared."""

from __future__ import annotations

from typing import Any, NamedTuple


class Unreadable(Exception):
    """The text is not in the grammar, or ambiguous. The message says why."""


class Unsupported(Unreadable):
    """The text has a construct that is left to Math-Verify: an integral, a sum, a limit."""


class TooLarge(Exception):
    """A value with more digits than are computed. The message says of what."""


class Undefined(Exception):
    """A division by zero, or a function outside its domain."""


class Node(NamedTuple):
    """One node of a tree.

    ``kind`` and its ``data``: num (value as a Fraction, decimal places or None), name (the name), const (pi, e, i, oo),
    neg, add, mul, div, pow, pm (which of the two signs), fn (the function), pct, deg, unit (the unit), tuple (both
    delimiters), set, list (what separates: "," "or" "and"), union, rel (the operators), matrix (args are rows), dots,
    symbol (a set such as R). :mod:`aster.grading.forms` makes two more: interval, from inequalities (data: both ends), and
    values, from ``x = 1, y = 2`` (data: the names in order).
    """

    kind: str
    args: tuple[Any, ...] = ()
    data: Any = None


def product(*factors: Node) -> Node:
    """A product, flat: a long one is not a deep tree."""
    flat: list[Node] = []
    for factor in factors:
        flat.extend(factor.args if factor.kind == "mul" else (factor,))
    return Node("mul", tuple(flat))
