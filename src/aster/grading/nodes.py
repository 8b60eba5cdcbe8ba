"""The tree of an answer. The grammar builds it; other modules evaluate and compare it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple


class Unreadable(Exception):
    """The text is not in the grammar, or it is ambiguous. The message says why."""


class Unsupported(Unreadable):
    """The text contains something that Math-Verify has to compare: an integral, a sum, a limit."""


class TooLarge(Exception):
    """A value has too many digits to compute. The message says which."""


class Undefined(Exception):
    """A division by zero, or a function outside its domain."""


class Node(NamedTuple):
    """One node of a tree.

    Values of ``kind``, with ``data`` in parentheses: num (value as a Fraction; decimal places or None), name (the name), const
    (pi, e, i, oo), neg, add, mul, div, pow, pm (plus-minus or minus-plus), fn (the function), pct, deg, unit (the unit), tuple
    (both delimiters), set, list (the separator: "," "or" "and"), union, rel (the operators), matrix (args are rows), dots,
    symbol (a set such as R). :mod:`aster.grading.forms` makes two more: interval, from inequalities (both delimiters), and
    values, from ``x = 1, y = 2`` (the names in order).
    """

    kind: str
    args: tuple[Any, ...] = ()
    data: Any = None


def walk(*nodes: Node) -> Iterator[Node]:
    """Yield every node of the trees, parents before their children."""
    stack: list[Any] = list(nodes)
    while stack:
        part = stack.pop()
        if isinstance(part, Node):
            yield part
            stack.extend(part.args)
        else:  # a row of a matrix
            stack.extend(part)


def product(*factors: Node) -> Node:
    """Return the product of factors. It is flat, so that a long product does not become a deep tree."""
    flat: list[Node] = []
    for factor in factors:
        flat.extend(factor.args if factor.kind == "mul" else (factor,))
    return Node("mul", tuple(flat))
