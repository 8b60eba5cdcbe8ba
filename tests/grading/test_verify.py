"""The verifier: which answers are equal, and the reason. test_corpus.py runs a larger corpus."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aster.grading import Verdict, fast_verdict, verify


@pytest.mark.parametrize(
    ("prediction", "answer", "verdict"),
    [
        (None, "5", Verdict(False, "no answer")),
        ("", "5", Verdict(False, "empty answer")),
        (" $ $ ", "5", Verdict(False, "empty answer")),
        ("025", "25", Verdict(True, "integer")),
        ("25", "025", Verdict(True, "integer")),
        ("+5", "5", Verdict(True, "integer")),
        ("-0", "0", Verdict(True, "integer")),
        ("\u22123", "-3", Verdict(True, "integer")),
        (" $5$. ", "5", Verdict(True, "integer")),
        (r"\(5\)", "5", Verdict(True, "integer")),
        ("1,234,567", "1234567", Verdict(True, "integer")),
        ("12{,}345", "12345", Verdict(True, "integer")),
        (r"12\,345", "12345", Verdict(True, "integer")),
        ("5.0", "5", Verdict(True, "integer")),
        ("0.50", ".5", Verdict(True, "decimal")),
        (r"\text{7}", "7", Verdict(True, "integer")),
        ("9" * 6000, "9" * 6000, Verdict(True, "integer")),
        ("70", "71", Verdict(False, "integer")),
        ("5", "-5", Verdict(False, "integer")),
        ("5.5", "5", Verdict(False, "decimal")),
        ("0.0000001", "0", Verdict(False, "decimal")),
        (r"\dfrac{1}{2}", r"\frac{1}{2}", Verdict(True, "same text")),
        (r"\left( 1, 2 \right)", "(1,2)", Verdict(True, "same text")),
        (r"\text{Yes}", "Yes", Verdict(True, "same text")),
        (r"2 \pi  r", r"2\pi r", Verdict(True, "same text")),
    ],
)
def test_answers_that_are_decided_at_once(prediction: str | None, answer: str, verdict: Verdict) -> None:
    assert fast_verdict(prediction, answer) == verdict
    assert verify(prediction, answer) == verdict


@pytest.mark.parametrize(
    ("prediction", "answer"),
    [
        ("1/2", "0.5"),
        ("x=5", "5"),
        ("5.0000001", "5"),
        ("1 2", "12"),
        ("1,23", "123"),
        ("12,3456", "123456"),
        ("0.333...", "0.333"),
        ("٣", "3"),
    ],
)
def test_answers_that_are_not_decided_at_once(prediction: str, answer: str) -> None:
    assert fast_verdict(prediction, answer) is None


@settings(max_examples=200, deadline=None)
@given(st.integers(), st.integers(), st.integers(0, 3))
def test_integers_agree_with_arithmetic(first: int, second: int, zeros: int) -> None:
    sign, digits = ("-", str(first)[1:]) if first < 0 else ("", str(first))
    written = f"${sign}{'0' * zeros}{digits}$ ."
    assert fast_verdict(written, str(second)) == Verdict(first == second, "integer")
    assert fast_verdict(f"{first:,}", str(first)) == Verdict(True, "integer")


@settings(max_examples=200, deadline=None)
@given(st.decimals(-1000, 1000, places=4), st.decimals(-1000, 1000, places=4))
def test_decimals_agree_with_arithmetic(first: Decimal, second: Decimal) -> None:
    verdict = fast_verdict(f"{first:f}", f"{second:f}")
    assert verdict is None or verdict.correct == (first == second)
    assert first != second or verdict is not None


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.text(max_size=40), st.text(alphabet="\\({[$.,-+0123}]) ", max_size=20)))
def test_any_text_equals_itself_or_is_empty(text: str) -> None:
    verdict = fast_verdict(text, text)
    assert verdict is not None
    assert verdict.correct or verdict.reason == "empty answer"


@pytest.mark.parametrize(
    ("prediction", "answer", "reason"),
    [
        ("1/2", "0.5", "equal numbers"),
        ("x = 5", "5", "value of a name, same expression"),
        ("m+n=70", "70", "value of a name, same expression"),
        ("0.333333", r"\frac{1}{3}", "equal when rounded"),
        (r"12 \text{ cm}", "12", "same expression, a unit left out"),
        (r"10\%", "10", "equal numbers, a percent sign left out"),
        (r"50\%", "0.5", "equal percentage"),
        (r"180^\circ", r"\pi", "equal numbers, degrees and radians"),
        ("9/sqrt(23)", r"\frac{9 \sqrt{23}}{23}", "equal numbers"),
        ("1-2/pi", r"1-\frac{2}{\pi}", "same expression"),
        (r"2^{26} 26!/2", r"2^{25} \cdot 26!", "equal numbers"),
        ("2, 1", "1, 2", "equal set"),
        (r"\frac{-1\pm\sqrt{17}}{2}", r"\frac{-1+\sqrt{17}}{2}, \frac{-1-\sqrt{17}}{2}", "equal set"),
        ("y=2, x=1", "(1,2)", "equal values in the order of their names"),
        ("x > 3", r"(3, \infty)", "equal tuple or interval"),
        ("2y = 4x + 2", "y = 2x+1", "the same relation up to a factor"),
        (r"\sin 2x", r"2 \sin x \cos x", "equal for all values of the names"),
        ("[[1, 2], [3, 4]]", r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}", "same expression"),
        ("(B)", "B", "the same choice"),
        ("2516", "2516_8", "the same digits, a base left out"),
        ("9^{9^{9}}", "9^{9^9}", "same expression"),
    ],
)
def test_equal_answers_and_the_reason(prediction: str, answer: str, reason: str) -> None:
    assert verify(prediction, answer) == Verdict(True, reason)


@pytest.mark.parametrize(
    ("prediction", "answer", "reason"),
    [
        (r"\frac{1}{2^{99}}", r"\frac{1}{2^{98}}", "different numbers"),
        ("0.33", r"\frac{1}{3}", "different numbers"),
        (r"\sqrt{10^{200}+1}", "10^{100}", "different numbers"),
        ("3x-y+13=0", "3x+4y+14=0", "different relations"),
        ("3x+4y=0", "0", "an equation that states no value"),
        ("2x=10", "10", "an equation that states no value"),
        ("x=5", "y=5", "values of different names"),
        (r"\pm 2021", "2021", "different kinds: several values and number"),
        ("(2,1)", "(1,2)", "entry 1 differs"),
        ("[1,2)", "[1,2]", "brackets differ: [) and []"),
        ("70, 71", "70", "different kinds: several values and number"),
        ("1, 2", "1, 2, 3", "an element of the answer is missing"),
        (r"12 \text{ cm}", r"12 \text{ m}", "different units: cm and m"),
        (r"\text{Monday}", "Tuesday", "different words"),
        ("1/2x", "x/2", "cannot read the prediction: ambiguous: "),
        ("5", "1/2x", "cannot read the known answer: ambiguous: "),
        (r"\sin \pi/6", "1/2", "cannot read the prediction: ambiguous: "),
        ("{", "5", "cannot read the prediction: "),
        ("\x00\ud800", "5", "cannot read the prediction: "),
        ("9^{9^{9^9}}", "5", "not compared: too large: "),
        ("3/0", "5", "not compared: "),
        (r"\sum_{k=1}^{\infty} k^k", "5", r"not compared: too large for Math-Verify: \sum_{k=1}^{\infty} "),
        ("(" * 900, "5", "cannot read the prediction: "),
        ("((" * 600, "5", "too long: 1200 characters"),
        ("((" * 6000, "5", "too long: 12000 characters"),
    ],
)
def test_different_answers_and_the_reason(prediction: str, answer: str, reason: str) -> None:
    verdict = verify(prediction, answer)
    assert not verdict.correct
    assert verdict.reason.startswith(reason)


@pytest.mark.parametrize(
    ("prediction", "answer", "correct"),
    [
        (r"\int_0^1 x\,dx", r"\frac{1}{2}", True),
        (r"\int_0^1 x\,dx", r"\frac{1}{3}", False),
        ("55", r"\sum_{k=1}^{10} k", True),
        (r"\lim_{x\to 0} \frac{\sin x}{2^{99} x}", r"\frac{1}{2^{98}}", False),
    ],
)
def test_answers_that_math_verify_decides(prediction: str, answer: str, correct: bool) -> None:
    verdict = verify(prediction, answer, seconds=30)
    assert verdict.correct is correct
    assert verdict.reason.startswith("math-verify: ")


def test_a_time_out_is_a_wrong_answer_with_that_reason() -> None:
    verdict = verify(r"\int \sin(\cos(\tan x)) dx", "5", seconds=0.02)
    assert verdict == Verdict(False, "math-verify: timed out after 0.02 s")


NUMBERS = st.fractions(-20, 20, max_denominator=12)


Expression = tuple[str, str, Fraction]
"""An expression in LaTeX and in Python's spelling, and its value."""


def _leaf(number: Fraction) -> Expression:
    sign, (above, below) = "-" if number < 0 else "", abs(number).as_integer_ratio()
    return rf"\left({sign}\frac{{{above}}}{{{below}}}\right)", f"({sign}{above}/{below})", number


def _joined(parts: tuple[str, Expression, Expression]) -> Expression:
    kind, (latex, python, value), (other_latex, other_python, other) = parts
    if kind == "/" and other:
        return rf"\dfrac{{{latex}}}{{{other_latex}}}", f"({python}/({other_python}))", value / other
    if kind == "^":
        return rf"\left({latex}\right)^{{2}}", f"({python})**2", value**2
    if kind == "*":
        return rf"{latex} \cdot {other_latex}", f"{python}*{other_python}", value * other
    if kind == "-":
        return rf"\left({latex} - {other_latex}\right)", f"({python} - {other_python})", value - other
    return f"({latex} + {other_latex})", f"({python} + {other_python})", value + other


EXPRESSIONS = st.recursive(
    NUMBERS.map(_leaf), lambda inner: st.tuples(st.sampled_from("+-*/^"), inner, inner).map(_joined), max_leaves=6
)


@settings(max_examples=60, deadline=None)
@given(EXPRESSIONS, NUMBERS)
def test_expressions_agree_with_arithmetic(expression: Expression, number: Fraction) -> None:
    latex, python, value = expression
    assert verify(latex, f"{value.numerator}/{value.denominator}").correct
    assert verify(latex, python).correct
    assert verify(python, str(number)).correct is (value == number)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(-9, 9), min_size=2, max_size=4), st.integers(1, 9))
def test_a_polynomial_equals_its_factors(roots: list[int], wrong: int) -> None:
    factors = "".join(f"(x-{root})" if root >= 0 else f"(x+{-root})" for root in roots)
    coefficients = [1]
    for root in roots:
        coefficients = [a - root * b for a, b in zip([*coefficients, 0], [0, *coefficients], strict=True)]
    expanded = "+".join(f"({c})x^{{{len(roots) - i}}}" for i, c in enumerate(coefficients))
    assert verify(factors, expanded).correct
    assert verify(expanded, factors).correct
    assert not verify(factors, f"{expanded}+{wrong}").correct


@pytest.mark.parametrize(
    ("prediction", "answer"),
    [
        # A list of two numbers is not a number with thousands.
        ("2100", "2, 100"),
        ("2, 100", "2100"),
        ("1, 234, 567", "1234567"),
        ("57", "5  7"),
        ("5 \n 7", "57"),
        ("$5$ $7$", "57"),
        (r"5\quad100", "5100"),
        (r"5\text{ }7", "57"),
        # TeX reads these in another way than the author meant. An exponent without braces ends with its digits.
        (r"\sqrt 12", "2"),
        (r"\sqrt12", "2"),
        (r"\frac123", r"\frac{3}{2}"),
        (r"4^3\frac{1}{2}", "128"),
        ("2^2 1/2", r"4\sqrt{2}"),
        # Equal only in a region.
        ("|x-3|", "3-x"),
        ("|x+5|", "x+5"),
        (r"\sqrt{(x-2025)^2}", "2025-x"),
        ("|x|+|y|", "|x+y|"),
        ("|(x-y)(y-z)(z-x)|", "(x-y)(y-z)(z-x)"),
        (r"\frac{a+b+|a-b|}{2}", "a"),
        # Values that occur a different number of times.
        ("1, 2, 2", "1, 1, 2"),
        ("1, 1, 2", "1, 2"),
    ],
)
def test_no_false_positive_of_known_kinds(prediction: str, answer: str) -> None:
    assert not verify(prediction, answer).correct
    assert not verify(answer, prediction).correct


@pytest.mark.parametrize(
    ("prediction", "answer"),
    [
        ("1, 234", "1,234"),
        (r"4^3\frac{1}{2}", "32"),
        (r"x^2\frac{1}{2}", r"\frac{x^2}{2}"),
        (r"\sqrt2\sqrt{3}", r"\sqrt{6}"),
        (r"\frac12 x", "x/2"),
        ("2, 1, 1", "1, 1, 2"),
        (r"\{1, 1, 2\}", r"\{1, 2\}"),
        (r"\cosh x + \sinh x", "e^x"),
        ("2^{n+1} - 1", r"2 \cdot 2^n - 1"),
        ("x^{2025} - x", "x(x^{2024} - 1)"),
    ],
)
def test_no_miss_of_known_kinds(prediction: str, answer: str) -> None:
    assert verify(prediction, answer).correct
    assert verify(answer, prediction).correct


def test_an_absolute_value_is_not_its_argument_for_any_two_letters() -> None:
    letters = "abcdfgkmnpqrstxyz"
    for one in letters:
        for two in letters.replace(one, ""):
            assert not verify(f"|{one}-{two}|", f"{one}-{two}").correct, (one, two)
            assert not verify(f"|{one}{two}|", f"{one}{two}").correct, (one, two)
