"""Compare two numbers or expressions, with their units, percent signs and roundings."""

from __future__ import annotations

from fractions import Fraction
from typing import Any, NamedTuple

from aster.grading import value
from aster.grading.nodes import Node

PLACES = 6
"""Decimal places from which a decimal may be a rounded value of another number. Math-Verify rounds to six places too."""
NOISE_DIGITS = 15
"""Significant digits from which a decimal is taken as a double, whose last digits are noise."""
NOISE = Fraction(1, 10**13)
"""Largest relative error of such a double."""


class Outcome(NamedTuple):
    """Whether two answers are equal, and the reason."""

    equal: bool
    reason: str


def scalars(given: Node, wanted: Node) -> Outcome:
    """Compare two numbers or expressions with their units."""
    given_unit, given = unit_and_rest(given)
    wanted_unit, wanted = unit_and_rest(wanted)
    note = ""
    if given_unit != wanted_unit:
        if given_unit and wanted_unit:
            return Outcome(False, f"different units: {given_unit} and {wanted_unit}")
        note = ", a unit left out"
        unit = given_unit or wanted_unit
        if unit == "%":
            return _percentage(given, wanted, bool(given_unit))
        if unit == "°":
            plain = wanted if given_unit else given
            if value.mentions(plain, "const", "pi"):
                given, wanted = (Node("deg", (node,)) if node is not plain else node for node in (given, wanted))
                note = ", degrees and radians"
    outcome = values(given, wanted)
    return Outcome(outcome.equal, outcome.reason + note)


def unit_and_rest(node: Node) -> tuple[str, Node]:
    """Return the unit of a number ("" for none), and the number without it."""
    if node.kind == "neg" and node.args[0].kind in ("unit", "pct", "deg"):
        unit, rest = unit_and_rest(node.args[0])
        return unit, Node("neg", (rest,))
    if node.kind == "unit":
        return node.data, node.args[0]
    if node.kind == "pct":
        return "%", node.args[0]
    return ("°", node.args[0]) if node.kind == "deg" else ("", node)


def _percentage(given: Node, wanted: Node, given_has_it: bool) -> Outcome:
    """Compare a percentage with a number: ``50%`` equals ``0.5``, and also ``50``, if only the sign is missing.

    A number up to 1 may be a share, so ``1%`` does not equal ``1``.
    """
    percent, plain = (given, wanted) if given_has_it else (wanted, given)
    if values(Node("pct", (percent,)), plain).equal:
        return Outcome(True, "equal percentage")
    size = value.magnitude(plain)
    if size is not None and abs(size) > 1 and values(percent, plain).equal:
        return Outcome(True, "equal numbers, a percent sign left out")
    return Outcome(False, "different percentages")


def values(given: Node, wanted: Node) -> Outcome:
    """Compare two expressions without units."""
    if given == wanted:
        return Outcome(True, "same expression")
    free = value.names(given) | value.names(wanted)
    natural = _natural_logarithms(given, wanted)
    if natural:
        given, wanted = natural
    if value.same(given, wanted):
        return Outcome(True, "equal for all values of the names" if free else "equal numbers")
    if not free:
        for decimal, other in ((given, wanted), (wanted, given)):
            if _rounded(decimal, other):
                return Outcome(True, "equal when rounded")
    return Outcome(False, "different expressions" if free else "different numbers")


def _decimal(node: Node) -> tuple[Fraction, int] | None:
    negative = node.kind == "neg"
    node = node.args[0] if negative else node
    if node.kind != "num" or node.data[1] is None or node.data[1] < PLACES:
        return None
    return (-node.data[0] if negative else node.data[0]), node.data[1]


def _rounded(node: Node, other: Node) -> bool:
    """Return whether a long decimal is a rounded value of the other number, which must not be a long decimal itself."""
    decimal = _decimal(node)
    if decimal is None:
        return False
    number, places = decimal
    significant = len(str(abs(number.numerator * 10**places // number.denominator))) if number else 0
    exact = value.exact(other)
    if exact is not None and significant >= NOISE_DIGITS and abs(number - exact) <= NOISE * abs(exact):
        return True
    return significant >= PLACES and _decimal(other) is None and value.approximates(number, places, other)


def _natural_logarithms(given: Node, wanted: Node) -> tuple[Node, Node] | None:
    """Return both answers with Python's ``log`` read as the natural logarithm, or None if it should not be.

    It is read like that if one answer has Python's ``log`` and the other has ``ln`` or e, and neither has ``\\log``.
    """
    written = [value.mentions(node, "fn", "Log") for node in (given, wanted)]
    if written[0] == written[1] or value.mentions(given, "fn", "log") or value.mentions(wanted, "fn", "log"):
        return None
    other = wanted if written[0] else given
    if not (value.mentions(other, "fn", "ln") or value.mentions(other, "const", "e")):
        return None
    return _natural(given), _natural(wanted)


def _natural(node: Any) -> Any:
    if isinstance(node, Node):
        return Node(node.kind, tuple(_natural(part) for part in node.args), "ln" if node.data == "Log" else node.data)
    return node
