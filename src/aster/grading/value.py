"""Computing with a tree: exact fractions where they suffice, high precision elsewhere, and never without a bound.

Two expressions are equal where their values are. Fractions are compared exactly. Otherwise both are computed at two precisions,
far beyond the digits of any number in them: a difference that shrinks with the precision is noise, one that stays is real. Names
stand for several rational numbers each, of both signs. A polynomial identity that holds at four random points fails to hold
everywhere with negligible probability (Schwartz and Zippel); for roots and logarithms it is the same in practice.

Everything is bounded before it is computed: a number of :data:`BITS` bits is the largest, so a power tower costs nothing.
"""

from __future__ import annotations

import math
import operator
import random
import threading
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from aster.grading.nodes import Node, TooLarge, Undefined, Unreadable

BITS = 24_000
"""Bits of the largest exact number: 2006! fits, 3000! does not."""
WORK = 3_000_000
"""Bits of all exact results of one evaluation together, which bounds its time."""
DIGITS = 50
"""Decimal digits of the first of the two precisions, at least."""
MOST_DIGITS = 1500
POINTS = 4
"""Values that each name is given: the first two positive, the others of either sign."""
ARGUMENT = 100_000
"""Largest argument of an exponential, a power or a trigonometric function that is not exact."""

_lock = threading.Lock()
_context: Any = None


def context() -> Any:
    """The mpmath context of this module alone. Only the holder of the lock may use it: its precision is global to it."""
    global _context
    if _context is None:
        from mpmath.ctx_mp import MPContext

        _context = MPContext()
    return _context


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
    """Whether two expressions have equal values, for all values of their names. TooLarge, Undefined, Unreadable where unknown."""
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
    point = _point(free, 0)
    with _lock:
        ctx = context()
        ctx.dps = digits(first, second)
        one, two = _number(Evaluation(point).of(first)), _number(Evaluation(point).of(second))
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
        for index in range(POINTS):
            verdict = _agree(first, second, _point(free, index), precision, real=index >= 2 and not imaginary)
            if verdict is False:
                return False
            agreed += verdict is True
    if not agreed:
        raise Undefined("not defined where it was tried")
    return True


def _point(free: frozenset[str], index: int) -> dict[str, Fraction]:
    """A value for each name: the same in every process. Positive in the first two points."""
    point = {}
    for name in free:
        source = random.Random(f"{name} {index}")
        value = Fraction(source.randint(211, 1999), 997)
        point[name] = value if index < 2 or name == "base of log" or source.random() < 0.5 else -value
    if index >= 2 and free and all(value > 0 for value in point.values()):
        point = {name: value if name == "base of log" else -value for name, value in point.items()}
    if "base of log" in point:
        point["base of log"] = Fraction(7 + 4 * index, 3)
    return point


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
    except _NotExact:
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
        one, two = (_number(value) for value in values)
        if real and any(abs(ctx.im(value)) > abs(value) * ctx.mpf(10) ** (-precision // 2) for value in (one, two)):
            return None
        if ctx.isinf(one) or ctx.isinf(two) or ctx.isnan(one) or ctx.isnan(two):
            return bool(one == two)
        difference, largest = abs(one - two), max(abs(one), abs(two))
        if scale == 1 and difference > ctx.mpf(10) ** -10 and difference > largest * ctx.mpf(10) ** -10:
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
            value = _number(Evaluation({}).of(other))
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
            value = _number(Evaluation({}).of(node))
        except (Undefined, TooLarge, Unreadable):
            return None
        return None if ctx.im(value) != 0 or ctx.isnan(value) else ctx.re(value)


class _NotExact(Exception):
    """The value is no fraction found by arithmetic alone."""


def _number(value: Any) -> Any:
    ctx = context()
    return ctx.mpf(value.numerator) / value.denominator if isinstance(value, Fraction) else value


class Evaluation:
    """One evaluation at one point. The results are fractions as long as possible."""

    def __init__(self, point: dict[str, Fraction], exactly: bool = False) -> None:
        self.point = point
        self.exactly = exactly
        self.work = 0

    def of(self, node: Node) -> Any:
        compute = getattr(self, f"_{node.kind}", None) if isinstance(node, Node) else None
        if compute is None:
            raise Unreadable(f"a {node.kind} where a number is expected")
        return self.bounded(compute(node))

    def bounded(self, value: Any) -> Any:
        """The value, where it and all before it are not too large."""
        if isinstance(value, Fraction):
            bits = value.numerator.bit_length() + value.denominator.bit_length()
            self.work += bits
            if bits > 2 * BITS or self.work > WORK:
                raise TooLarge("too large to compute")
        return value

    def inexact(self) -> Any:
        """The context, where a fraction does not do."""
        if self.exactly:
            raise _NotExact
        return context()

    def _num(self, node: Node) -> Fraction:
        return node.data[0]

    def _name(self, node: Node) -> Fraction:
        if self.exactly:
            raise _NotExact
        return self.point[node.data]

    def _const(self, node: Node) -> Any:
        ctx = self.inexact()
        return {"pi": +ctx.pi, "e": +ctx.e, "i": ctx.mpc(0, 1), "oo": ctx.inf}[node.data]

    def _neg(self, node: Node) -> Any:
        return -self.of(node.args[0])

    def _add(self, node: Node) -> Any:
        return self._fold(node, operator.add)

    def _mul(self, node: Node) -> Any:
        return self._fold(node, operator.mul)

    def _fold(self, node: Node, operation: Callable[[Any, Any], Any]) -> Any:
        result = self.of(node.args[0])
        for argument in node.args[1:]:
            value = self.of(argument)
            if isinstance(result, Fraction) and isinstance(value, Fraction):
                result = self.bounded(operation(result, value))
            else:
                result = operation(_number(result), _number(value))
        return result

    def _div(self, node: Node) -> Any:
        one, two = self.of(node.args[0]), self.of(node.args[1])
        if two == 0:
            raise Undefined("a division by zero")
        if isinstance(one, Fraction) and isinstance(two, Fraction):
            return one / two
        return _number(one) / _number(two)

    def _pct(self, node: Node) -> Any:
        value = self.of(node.args[0])
        return value / 100

    def _deg(self, node: Node) -> Any:
        ctx = self.inexact()
        return _number(self.of(node.args[0])) * ctx.pi / 180

    def _pow(self, node: Node) -> Any:
        exponent = self.of(node.args[1])
        # The exponential with the constant e is one function, not a rounded base.
        if node.args[0] == Node("const", (), "e"):
            return self._exp(exponent)
        base = self.of(node.args[0])
        if isinstance(exponent, Fraction) and exponent.denominator == 1:
            return self._whole_power(base, exponent.numerator)
        if base == 0:
            if isinstance(exponent, Fraction) and exponent > 0:
                return Fraction(0)
            raise Undefined("a power of zero")
        ctx = self.inexact()
        base, exponent = _number(base), _number(exponent)
        self._small(exponent)
        self._small(ctx.log(abs(base)) * abs(exponent))
        return ctx.power(base, exponent)

    def _whole_power(self, base: Any, exponent: int) -> Any:
        if base == 0 and exponent <= 0:
            raise Undefined("a power of zero")
        if isinstance(base, Fraction):
            if abs(base.numerator) <= 1 and base.denominator == 1:
                return base ** (exponent % 2 if exponent else 0) if base else base
            bits = max(base.numerator.bit_length(), base.denominator.bit_length())
            if bits * abs(exponent) > BITS:
                raise TooLarge("too large: a power of thousands of digits")
            return base**exponent
        if abs(exponent) > ARGUMENT:
            raise TooLarge("too large: the exponent")
        ctx = context()
        self._small(ctx.log(abs(base)) * exponent if base else ctx.zero)
        return base**exponent

    def _small(self, value: Any) -> None:
        ctx = context()
        if ctx.isnan(value) or ctx.isinf(value) or abs(value) > ARGUMENT:
            raise TooLarge("too large: the argument of a function")

    def _exp(self, exponent: Any) -> Any:
        if exponent == 0:
            return Fraction(1)
        ctx = self.inexact()
        value = _number(exponent)
        if value == -ctx.inf:
            return Fraction(0)
        self._small(value)
        return ctx.exp(value)

    def _fn(self, node: Node) -> Any:
        name = node.data
        values = [self.of(argument) for argument in node.args]
        first = values[0]
        if name in ("factorial", "binomial", "abs", "floor", "ceil", "sqrt", "root", "exp"):
            return getattr(self, f"_{name}")(*values)
        ctx = self.inexact()
        value = _number(first)
        if ctx.isinf(value) or ctx.isnan(value):
            raise Undefined("a function at infinity")
        if name in ("ln", "log", "Log", "lg"):
            if value == 0:
                raise Undefined("the logarithm of zero")
            below = {"ln": None, "lg": 10}.get(name, self.point.get("base of log"))
            return ctx.ln(value) / ctx.ln(_number(Fraction(below))) if below else ctx.ln(value)
        self._small(value)
        try:
            return getattr(ctx, name)(value)
        except (ZeroDivisionError, ValueError):
            raise Undefined(f"{name} has a pole") from None

    def _abs(self, value: Any) -> Any:
        return abs(value)

    def _floor(self, value: Any) -> Any:
        return Fraction(math.floor(value)) if isinstance(value, Fraction) else self._near(value, math.floor)

    def _ceil(self, value: Any) -> Any:
        return Fraction(math.ceil(value)) if isinstance(value, Fraction) else self._near(value, math.ceil)

    def _near(self, value: Any, function: Callable[[Any], int]) -> Fraction:
        ctx = self.inexact()
        if not ctx.isfinite(value) or ctx.im(value) != 0 or abs(value) > ctx.mpf(10) ** DIGITS:
            raise Undefined("a rounding of what is not a real number")
        value = ctx.re(value)
        nearest = ctx.nint(value)
        # floor(sqrt(2)^2) is 2: what is an integer but for noise counts as that integer.
        if abs(value - nearest) < ctx.mpf(10) ** (-ctx.dps // 2):
            value = nearest
        return Fraction(int(ctx.floor(value) if function is math.floor else ctx.ceil(value)))

    def _sqrt(self, value: Any) -> Any:
        if isinstance(value, Fraction) and value >= 0:
            above, below = math.isqrt(value.numerator), math.isqrt(value.denominator)
            if above * above == value.numerator and below * below == value.denominator:
                return Fraction(above, below)
        return self.inexact().sqrt(_number(value))

    def _root(self, value: Any, index: Any) -> Any:
        if not isinstance(index, Fraction) or index.denominator != 1 or not 1 <= index <= 1000:
            raise Unreadable("a root of an unusual degree")
        ctx = self.inexact()
        number = _number(value)
        if ctx.im(number) == 0 and ctx.re(number) < 0 and index % 2:
            return -ctx.root(-ctx.re(number), int(index))
        return ctx.root(number, int(index))

    def _factorial(self, value: Any) -> Any:
        if isinstance(value, Fraction) and value.denominator == 1:
            if value < 0:
                raise Undefined("the factorial of a negative number")
            if value > 2500:
                raise TooLarge("too large: a factorial of thousands of digits")
            return Fraction(math.factorial(int(value)))
        ctx = self.inexact()
        number = _number(value)
        if abs(number) > 1000:
            raise TooLarge("too large: a factorial")
        return ctx.gamma(number + 1)

    def _binomial(self, above: Any, below: Any) -> Any:
        if not isinstance(above, Fraction) or not isinstance(below, Fraction):
            raise Unreadable("a binomial coefficient of what is not rational")
        if below.denominator != 1:
            ctx = self.inexact()
            if max(abs(above), abs(below)) > 1000:
                raise TooLarge("too large: a binomial coefficient")
            return ctx.binomial(_number(above), _number(below))
        if above.denominator == 1 and above >= 0:
            if below < 0 or below > above:
                return Fraction(0)
            below = min(below, above - below)
        if below < 0:
            return Fraction(0)
        if int(below) * max(1, above.numerator.bit_length() + above.denominator.bit_length()) > BITS:
            raise TooLarge("too large: a binomial coefficient of thousands of digits")
        if above.denominator == 1 and above >= 0:
            return Fraction(math.comb(int(above), int(below)))
        product = Fraction(1)
        for step in range(int(below)):
            product *= (above - step) / (step + 1)
        return product
