"""Evaluate a tree at one point: with exact fractions if possible, else in high precision. Every computation is bounded.

No number with more than :data:`BITS` bits is computed, so a power tower is rejected at once.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from aster.grading.nodes import Node, TooLarge, Undefined, Unreadable

BITS = 24_000
"""Largest size of an exact number in bits: 2006! fits, 3000! does not."""
WORK = 3_000_000
"""Largest sum of the bits of all exact results of one evaluation. This bounds its time."""
DIGITS = 50
"""Smallest number of decimal digits of the lower of the two precisions."""
ARGUMENT = 100_000
"""Largest argument of an exponential, a power or a trigonometric function that is not computed exactly."""

_context: Any = None


def context() -> Any:
    """Return this module's own mpmath context. Hold ``value._lock`` while using it, because its precision is shared state."""
    global _context
    if _context is None:
        from mpmath.ctx_mp import MPContext

        _context = MPContext()
    return _context


class NotExact(Exception):
    """The value cannot be computed as an exact fraction."""


def to_float(value: Any) -> Any:
    ctx = context()
    return ctx.mpf(value.numerator) / value.denominator if isinstance(value, Fraction) else value


class Evaluation:
    """One evaluation at one point (name -> value). With ``exactly``, raises NotExact if a value is not an exact fraction."""

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
        """Return the value. Raises TooLarge if it has too many bits, or if all values so far have."""
        if isinstance(value, Fraction):
            bits = value.numerator.bit_length() + value.denominator.bit_length()
            self.work += bits
            if bits > 2 * BITS or self.work > WORK:
                raise TooLarge("too large to compute")
        return value

    def inexact(self) -> Any:
        """Return the mpmath context for a value that is not a fraction. Raises NotExact if only fractions are allowed."""
        if self.exactly:
            raise NotExact
        return context()

    def _num(self, node: Node) -> Fraction:
        return node.data[0]

    def _name(self, node: Node) -> Fraction:
        if self.exactly:
            raise NotExact
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
                result = operation(to_float(result), to_float(value))
        return result

    def _div(self, node: Node) -> Any:
        one, two = self.of(node.args[0]), self.of(node.args[1])
        if two == 0:
            raise Undefined("a division by zero")
        if isinstance(one, Fraction) and isinstance(two, Fraction):
            return one / two
        return to_float(one) / to_float(two)

    def _pct(self, node: Node) -> Any:
        value = self.of(node.args[0])
        return value / 100

    def _deg(self, node: Node) -> Any:
        ctx = self.inexact()
        return to_float(self.of(node.args[0])) * ctx.pi / 180

    def _pow(self, node: Node) -> Any:
        exponent = self.of(node.args[1])
        # Compute e^x as a function and not as a power of the rounded constant e.
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
        base, exponent = to_float(base), to_float(exponent)
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
        value = to_float(exponent)
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
        value = to_float(first)
        if ctx.isinf(value) or ctx.isnan(value):
            raise Undefined("a function at infinity")
        if name in ("ln", "log", "Log", "lg"):
            if value == 0:
                raise Undefined("the logarithm of zero")
            below = {"ln": None, "lg": 10}.get(name, self.point.get("base of log"))
            return ctx.ln(value) / ctx.ln(to_float(Fraction(below))) if below else ctx.ln(value)
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
            raise Undefined("a rounding of a value that is not a real number")
        value = ctx.re(value)
        nearest = ctx.nint(value)
        # floor(sqrt(2)^2) must be 2, so a value that is an integer within the noise counts as that integer.
        if abs(value - nearest) < ctx.mpf(10) ** (-ctx.dps // 2):
            value = nearest
        return Fraction(int(ctx.floor(value) if function is math.floor else ctx.ceil(value)))

    def _sqrt(self, value: Any) -> Any:
        if isinstance(value, Fraction) and value >= 0:
            above, below = math.isqrt(value.numerator), math.isqrt(value.denominator)
            if above * above == value.numerator and below * below == value.denominator:
                return Fraction(above, below)
        return self.inexact().sqrt(to_float(value))

    def _root(self, value: Any, index: Any) -> Any:
        if not isinstance(index, Fraction) or index.denominator != 1 or not 1 <= index <= 1000:
            raise Unreadable("a root of an unusual degree")
        ctx = self.inexact()
        number = to_float(value)
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
        number = to_float(value)
        if abs(number) > 1000:
            raise TooLarge("too large: a factorial")
        return ctx.gamma(number + 1)

    def _binomial(self, above: Any, below: Any) -> Any:
        if not isinstance(above, Fraction) or not isinstance(below, Fraction):
            raise Unreadable("a binomial coefficient of values that are not rational")
        if below.denominator != 1:
            ctx = self.inexact()
            if max(abs(above), abs(below)) > 1000:
                raise TooLarge("too large: a binomial coefficient")
            return ctx.binomial(to_float(above), to_float(below))
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
