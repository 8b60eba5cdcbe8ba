"""Decide whether two expressions have equal values.

Fractions are compared exactly. Other values are computed at two precisions, both far beyond the digits of any number in the
expressions: a difference that shrinks with the precision is noise, and one that stays is real. Names are replaced by several
rational numbers each (:func:`_points`). If two polynomials are equal at one random point, the probability that they are
different is negligible (Schwartz and Zippel); roots and logarithms behave in the same way. Several points are needed for
expressions that differ by region, such as ``|a - b|``: the points have both signs, are small and large, and put each pair of
names in both orders.

:mod:`aster.grading.evaluation` computes the value at one point.
"""

from __future__ import annotations

import math
import random
import threading
from fractions import Fraction
from typing import Any

from aster.grading.evaluation import DIGITS, Evaluation, NotExact, context, to_float
from aster.grading.nodes import Node, TooLarge, Undefined, Unreadable, walk

MOST_DIGITS = 1500
"""Highest precision, in decimal digits, that is used."""
SIGNS = 3
"""Largest number of points with names of both signs. With three, any two of eight names have different signs at one of them."""

STEADY = frozenset(["abs", "floor", "ceil", "sqrt", "root", "ln", "log", "Log", "lg", "asin", "acos", "atan", "acot"])
"""Functions whose values are not much larger than their arguments."""
FEW = 10**12
"""If the values are smaller than this, a clear difference at the first precision decides. Larger values may have more noise."""

_lock = threading.Lock()


def names(node: Node) -> frozenset[str]:
    """Return the names in a tree. The unknown base of a logarithm counts as a name."""
    found: set[str] = set()
    for part in walk(node):
        if part.kind == "name":
            found.add(part.data)
        elif part.kind == "fn" and part.data in ("log", "Log"):
            found.add("base of log")
    return frozenset(found)


def mentions(node: Node, kind: str, data: Any = None) -> bool:
    """Return whether the tree contains a node of that kind (and data)."""
    return any(part.kind == kind and (data is None or part.data == data) for part in walk(node))


def same(first: Node, second: Node) -> bool:
    """Return whether two expressions have equal values for all values of their names.

    Raises TooLarge, Undefined or Unreadable if this cannot be decided.
    """
    if first == second:
        return True
    free = names(first) | names(second)
    if not free:
        one, two = exact(first), exact(second)
        if one is not None and two is not None:
            return one == two
        with _lock:
            return _agree(first, second, {}, digits(first, second)) is True
    return _agree_everywhere(first, second, free)


def proportional(first: Node, second: Node, positive: bool) -> bool:
    """Return whether one expression is a constant times the other for all values of the names.

    ``positive``: the constant must be positive.
    """
    free = names(first) | names(second)
    if not free or names(first) != names(second):
        return False
    point = _points(free)[0]
    with _lock:
        ctx = context()
        ctx.dps = digits(first, second)
        one, two = to_float(Evaluation(point).of(first)), to_float(Evaluation(point).of(second))
        if one == 0 or two == 0:
            return False
        ratio = Evaluation(point).of(Node("div", (first, second)))
        if not isinstance(ratio, Fraction):
            return False
    if positive and ratio <= 0:
        return False
    scaled = Node("mul", (Node("num", (), (ratio, None)), second))
    return _agree_everywhere(first, scaled, free)


def _agree_everywhere(first: Node, second: Node, free: frozenset[str]) -> bool:
    """Return whether the values agree at all points. Points where a root or logarithm is not real are skipped."""
    imaginary = mentions(first, "const", "i") or mentions(second, "const", "i")
    precision = digits(first, second)
    agreed = 0
    with _lock:
        steady = not (_grows(first) or _grows(second))
        for index, point in enumerate(_points(free, steady)):
            try:
                verdict = _agree(first, second, point, precision, real=index >= 2 and not imaginary)
            except TooLarge:
                if index < 2:
                    raise
                # At a point of large values a power may be too large to compute. Skip the point.
                continue
            if verdict is False:
                return False
            agreed += verdict is True
    if not agreed:
        raise Undefined("not defined where it was tried")
    return True


def _grows(node: Node) -> bool:
    """Return whether the value may grow exponentially with that of a name."""
    for part in walk(node):
        if part.kind == "pow" and names(part.args[1]):
            return True
        if part.kind == "fn" and part.data not in STEADY and any(names(argument) for argument in part.args):
            return True
    return False


def _points(free: frozenset[str], steady: bool = False) -> list[dict[str, Fraction]]:
    """Return the points at which expressions are compared: a value for each name, the same in every process.

    There are: two points of small positive values, in opposite orders of the names; one of small negative values; points of
    both signs, so that any two names have different signs at one of them; and points of larger positive and negative values,
    without which ``|x - 3|`` would equal ``3 - x``. With ``steady`` there are still larger values, at which exponential
    functions could not be computed.
    """
    names = sorted(free)
    small = {name: Fraction(random.Random(f"{name} small").randint(211, 1999), 997) for name in names}
    larger = {name: Fraction(random.Random(f"{name} larger").randint(11_000, 23_000), 997) for name in names}
    mirrored = {name: Fraction(2210, 997) - small[name] for name in names}
    mixed = [
        {name: small[name] if rank >> bit & 1 else -mirrored[name] for rank, name in enumerate(names)}
        for bit in range(min(SIGNS, (len(names) - 1).bit_length()))
    ]
    factors = (1, -1, 401, -401) if steady else (1, -1)
    points = [small, mirrored, {name: -small[name] for name in names}, *mixed]
    points += [{name: factor * larger[name] for name in names} for factor in factors]
    if "base of log" in free:
        points = [{**point, "base of log": Fraction(7 + 4 * index, 3)} for index, point in enumerate(points)]
    return points


def digits(first: Node, second: Node) -> int:
    """Return the precision in decimal digits for comparing two expressions.

    It exceeds the longest number in them, because sqrt(10^40 + 1) is not 10^20. Raises TooLarge above MOST_DIGITS.
    """
    longest = 0
    for part in walk(first, second):
        number = None
        if part.kind == "num":
            number = part.data[0]
        elif part.kind == "pow" or part.data == "factorial":
            number = exact(part)
        if number is not None:
            longest = max(longest, number.numerator.bit_length(), number.denominator.bit_length())
    wanted = DIGITS + int(2 * longest * math.log10(2))
    if wanted > MOST_DIGITS:
        raise TooLarge("too large: a root or a function of numbers with hundreds of digits")
    return wanted


def exact(node: Node) -> Fraction | None:
    """Return the value if it can be computed as an exact fraction, else None. Raises Undefined or TooLarge."""
    try:
        value = Evaluation({}, exactly=True).of(node)
    except NotExact:
        return None
    return value if isinstance(value, Fraction) else None


def _agree(first: Node, second: Node, point: dict[str, Fraction], precision: int, real: bool = False) -> bool | None:
    """Return whether the values agree at one point; None if the point cannot decide.

    It cannot if both values are undefined there, or, with ``real``, if one of them is not real.
    """
    ctx = context()
    differences, largest, undefined = [], ctx.zero, 0
    for scale in (1, 2):
        ctx.dps = precision * scale
        values = []
        for node in (first, second):
            try:
                value = Evaluation(point).of(node)
            except Undefined:
                undefined += 1
                continue
            values.append(value)
        if undefined:
            if undefined == 1:
                return False
            if point:
                return None
            raise Undefined("not defined")
        if all(isinstance(value, Fraction) for value in values):
            return bool(values[0] == values[1])
        one, two = (to_float(value) for value in values)
        if real and any(abs(ctx.im(value)) > abs(value) * ctx.mpf(10) ** (-precision // 2) for value in (one, two)):
            return None
        if ctx.isinf(one) or ctx.isinf(two) or ctx.isnan(one) or ctx.isnan(two):
            return bool(one == two)
        difference, largest = abs(one - two), max(abs(one), abs(two))
        if scale == 1 and largest < FEW and difference > ctx.mpf(10) ** -10 and difference > largest * ctx.mpf(10) ** -10:
            return False
        differences.append(difference)
    if differences[1] <= largest * ctx.mpf(10) ** (-3 * precision // 2):
        return True
    return bool(differences[1] < differences[0] * ctx.mpf(10) ** (-precision // 2))


def approximates(decimal: Fraction, places: int, other: Node) -> bool:
    """Return whether a decimal with that many places is the other number, rounded or truncated to them."""
    unit = Fraction(1, 10**places)
    number: Any = exact(other)
    if number is None:
        with _lock:
            ctx = context()
            ctx.dps = max(DIGITS, 2 * places + 20)
            value = to_float(Evaluation({}).of(other))
            if not ctx.isfinite(value) or ctx.im(value) != 0 or abs(value) > ctx.mpf(10) ** DIGITS:
                return False
            scale = 10 ** (ctx.dps - 5)
            number = Fraction(int(ctx.nint(ctx.re(value) * scale)), scale)
    error = abs(number) - abs(decimal)
    return decimal * number >= 0 and (abs(error) <= unit / 2 or 0 <= error < unit)


def magnitude(node: Node) -> Any:
    """Return an approximate real value, or None if there is none."""
    if names(node):
        return None
    with _lock:
        ctx = context()
        ctx.dps = DIGITS
        try:
            value = to_float(Evaluation({}).of(node))
        except (Undefined, TooLarge, Unreadable):
            return None
        return None if ctx.im(value) != 0 or ctx.isnan(value) else ctx.re(value)
