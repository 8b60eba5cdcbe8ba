"""Computing with a tree: exact fractions where they suffice, high precision elsewhere, and never without a bound.

Two expressions are equal where their values are. Fractions are compared exactly. Otherwise both are computed at two
precisions, far beyond the digits of any number in them: a difference that shrinks with the precision is noise, one that stays
is real. Names stand for several rational numbers each (:func:`_points`). A polynomial identity that holds at one random point
fails to hold everywhere with negligible probability (Schwartz and Zippel), and the same goes for roots and logarithms. What
differs by region, as ``|a - b|`` does, is why there are several: of both signs, small and large, and in both orders of each two
names.

:mod:`aster.grading.evaluation` computes one value.
"""

from __future__ import annotations

import math
import random
import threading
from fractions import Fraction
from typing import Any

from aster.grading.evaluation import DIGITS, Evaluation, NotExact, context, to_float
from aster.grading.nodes import Node, TooLarge, Undefined, Unreadable

MOST_DIGITS = 1500
SIGNS = 3
"""Most points with names of both signs. With three, each two of eight names have different signs at one of them."""

STEADY = frozenset(["abs", "floor", "ceil", "sqrt", "root", "ln", "log", "Log", "lg", "asin", "acos", "atan", "acot"])
"""Functions whose values are no larger than their arguments, or little."""
FEW = 10**12
"""Values below it whose difference is plain at the first precision need no second. Above, the noise itself may be large."""

_lock = threading.Lock()


def names(node: Node) -> frozenset[str]:
    """The names in a tree. A logarithm without a base depends on one of its own."""
    found: set[str] = set()
    stack: list[Any] = [node]
    while stack:
        part = stack.pop()
        if isinstance(part, Node):
            if part.kind == "name":
                found.add(part.data)
            elif part.kind == "fn" and part.data in ("log", "Log"):
                found.add("base of log")
            stack.extend(part.args)
        elif isinstance(part, tuple):
            stack.extend(part)
    return frozenset(found)


def mentions(node: Node, kind: str, data: Any = None) -> bool:
    """Whether a node of that kind (and data) is in the tree."""
    stack: list[Any] = [node]
    while stack:
        part = stack.pop()
        if isinstance(part, Node):
            if part.kind == kind and (data is None or part.data == data):
                return True
            stack.extend(part.args)
        elif isinstance(part, tuple):
            stack.extend(part)
    return False


def same(first: Node, second: Node) -> bool:
    """Whether two expressions have equal values, for all values of their names. TooLarge, Undefined, Unreadable: unknown."""
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
    """Whether one expression is a constant times the other (a positive one), for all values of the names."""
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
    """Whether the values agree at all points; a point where a root or logarithm is not real says nothing."""
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
                # Among large values a power may be too large, which says nothing.
                continue
            if verdict is False:
                return False
            agreed += verdict is True
    if not agreed:
        raise Undefined("not defined where it was tried")
    return True


def _grows(node: Node) -> bool:
    """Whether a value may be exponentially large in that of a name."""
    stack: list[Any] = [node]
    while stack:
        part = stack.pop()
        if isinstance(part, Node):
            if part.kind == "pow" and names(part.args[1]):
                return True
            if part.kind == "fn" and part.data not in STEADY and any(names(argument) for argument in part.args):
                return True
            stack.extend(part.args)
        elif isinstance(part, tuple):
            stack.extend(part)
    return False


def _points(free: frozenset[str], steady: bool = False) -> list[dict[str, Fraction]]:
    """Values for each name, the same in every process: two points of small positive values, in one order of the names and in
    the other; small negative ones; some of both signs, so that each two names differ at one; larger positive and negative
    ones, without which ``|x - 3|`` would be ``3 - x``; and with ``steady`` still larger ones, at which no exponential function
    can be computed with few digits."""
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
    """The precision: beyond the longest number in the two, for sqrt(10^40 + 1) is not 10^20."""
    longest = 0
    stack: list[Any] = [first, second]
    while stack:
        part = stack.pop()
        if isinstance(part, Node):
            if part.kind == "num":
                longest = max(longest, part.data[0].numerator.bit_length(), part.data[0].denominator.bit_length())
            elif part.kind == "pow" or part.data == "factorial":
                whole = exact(part)
                if whole is not None:
                    longest = max(longest, whole.numerator.bit_length(), whole.denominator.bit_length())
            stack.extend(part.args)
        elif isinstance(part, tuple):
            stack.extend(part)
    wanted = DIGITS + int(2 * longest * math.log10(2))
    if wanted > MOST_DIGITS:
        raise TooLarge("too large: a root or a function of numbers with hundreds of digits")
    return wanted


def exact(node: Node) -> Fraction | None:
    """The value where it is a fraction found by arithmetic alone, else None. Undefined and TooLarge as they are."""
    try:
        value = Evaluation({}, exactly=True).of(node)
    except NotExact:
        return None
    return value if isinstance(value, Fraction) else None


def _agree(first: Node, second: Node, point: dict[str, Fraction], precision: int, real: bool = False) -> bool | None:
    """Whether the values agree at one point; None where it says nothing (``real``: a value there is not real)."""
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
    """Whether a decimal with that many places is the other number, rounded or cut off there."""
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
    """An approximate real value, for ordering; None where there is none."""
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
