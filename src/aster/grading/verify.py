r"""Decide whether a prediction equals the known answer.

A prediction is the content of the last ``\boxed{}`` (:func:`aster.grading.boxed.extract_boxed`). There are three stages:

1. Plain numbers and identical texts are decided in microseconds.
2. If the grammar of :mod:`aster.grading.grammar` can read both sides, they are evaluated and compared in this process, with
   limits on every computation.
3. The rest (integrals, sums, limits, determinants) goes to Math-Verify. It can hang inside one arithmetic operation, so it runs
   in worker processes (:mod:`aster.grading.worker`) that are killed after the time limit.

The rules for ambiguous answers are in docs/verifier.md.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal

from aster.grading import forms, pool, scalars
from aster.grading.nodes import Node, TooLarge, Undefined, Unreadable
from aster.grading.reading import LETTER, Reading, read
from aster.grading.text import APART, INNER_SPACE, TEXT, canonical, number

LONGEST = 1000
"""Longest prediction or answer that is parsed, in characters. A final answer is short. Without this limit, a policy that fills
its box with noise would use up the full time limit for each answer."""

LONGEST_TEXT = 10_000
"""Longest prediction, in characters, that is compared at all, as a plain number or as text."""

HEAVY = re.compile(
    r"\^\s*(?:\{[^{}]*[\^!]|\{?\s*-?[0-9]{4})|[0-9]{7}|[0-9]{4}\s*!|!\s*\)?\s*!"
    r"|\\prod.*\\infty|\\sum.*\\binom|\\sum.*\\infty.*(?:!|[a-z]\s*\^\s*\{?\s*[a-z])",
    re.DOTALL,
)
"""Expressions that are not passed to Math-Verify: powers in exponents, exponents and factorials of four digits, numbers of
seven digits, infinite products, infinite sums of powers and factorials, sums of binomial coefficients. Math-Verify computes all
of their digits or does not terminate, so a policy could use up the time limit on every answer."""

CLOSE = Decimal("1e-6")
"""Two decimals with a smaller relative difference are left to the later stages."""


@dataclass(frozen=True)
class Verdict:
    """Whether a prediction is right, and the reason."""

    correct: bool
    reason: str
    """How the answers match (``integer``, ``same text``, ``equal numbers``), or why they do not (``different numbers``,
    ``no answer``, ``cannot read the prediction: ...``). It begins with ``math-verify:`` if Math-Verify decided."""


def verify(prediction: str | None, answer: str, seconds: float = 5.0) -> Verdict:
    """Compare a prediction with the known answer. Thread-safe.

    ``seconds`` limits the wall-clock time of Math-Verify, counted from when a worker is free and has started. Every prediction
    gets a verdict: if Math-Verify times out, or if its worker crashes twice (the second time in a new process), the prediction
    counts as incorrect and the reason says so. Raises UserError only if no worker process can be started, because then the
    installation is broken.
    """
    verdict = fast_verdict(prediction, answer)
    if verdict is not None or prediction is None:
        return verdict or Verdict(False, "no answer")
    if len(prediction) > LONGEST:
        return Verdict(False, f"too long: {len(prediction)} characters, at most {LONGEST} are compared")
    if len(answer) > LONGEST:
        return Verdict(False, f"the known answer is too long: {len(answer)} characters, at most {LONGEST} are compared")
    given, wanted = read(prediction), read(answer)
    if given.kind == "unreadable":
        return _unreadable(given, wanted, "prediction")
    if wanted.kind == "unreadable":
        return _unreadable(wanted, given, "known answer")
    if "unsupported" in (given.kind, wanted.kind) and {given.kind, wanted.kind} <= {"unsupported", "tree"}:
        for reading in (given, wanted):
            heavy = HEAVY.search(reading.text)
            if heavy:
                return Verdict(False, f"not compared: too large for Math-Verify: {heavy[0][:20]}")
        return Verdict(*pool.ask(given.text, wanted.text, seconds))
    return Verdict(*compare_readings(given, wanted))


def fast_verdict(prediction: str | None, answer: str) -> Verdict | None:
    r"""Return the verdict if it can be found in microseconds, else None.

    This decides: a missing or empty prediction; two plain numbers (``025``, ``+5``, ``1,234``, ``5.0``, with ``$``, spaces or a
    full stop around them), by exact value; texts that are the same except for spacing, ``\left``/``\right``, ``\dfrac`` instead
    of ``\frac``, and a ``\text{}`` around the whole text. Two decimals with a relative difference below a millionth are not
    decided.
    """
    if prediction is None:
        return Verdict(False, "no answer")
    if len(prediction) > LONGEST_TEXT:
        return Verdict(False, f"too long: {len(prediction)} characters")
    given, wanted = canonical(prediction), canonical(answer)
    if not given:
        return Verdict(False, "empty answer")
    first, second = (None if APART.search(raw) else number(text) for raw, text in ((prediction, given), (answer, wanted)))
    if first is not None and second is not None:
        whole = all(value == value.to_integral_value() for value in (first, second))
        if first == second:
            return Verdict(True, "integer" if whole else "decimal")
        if "." not in given and "." not in wanted:
            return Verdict(False, "integer")
        if abs(first - second) > CLOSE * max(abs(first), abs(second)):
            return Verdict(False, "decimal")
        return None
    if given == wanted:
        return Verdict(True, "same text")
    return None


def _unreadable(reading: Reading, other: Reading, which: str) -> Verdict:
    """Compare texts that cannot be parsed: they are equal only if they are spelled the same."""
    # First reduce several spaces to one. INNER_SPACE would otherwise remove two spaces between digits.
    texts = [INNER_SPACE.sub("", re.sub(r"\s+", " ", TEXT.sub(r" \1 ", one.text)).strip()) for one in (reading, other)]
    if texts[0] and texts[0] == texts[1]:
        return Verdict(True, "same text")
    return Verdict(False, f"cannot read the {which}: {reading.detail}")


def compare_readings(given: Reading, wanted: Reading) -> tuple[bool, str]:
    """Compare two parsed answers and return whether they are equal, and the reason."""
    kinds = {given.kind, wanted.kind}
    if kinds == {"tree"}:
        return _trees(given, wanted)
    if "choice" in kinds:
        letters = [_letter(reading) for reading in (given, wanted)]
        if None in letters:
            return False, "a choice, and something else"
        return letters[0] == letters[1], "the same choice" if letters[0] == letters[1] else "another choice"
    if "base" in kinds:
        return _bases(given, wanted)
    if kinds == {"words"} or kinds == {"ratio"}:
        same = given.text == wanted.text
        return same, "same text" if same else f"different {'words' if kinds == {'words'} else 'ratios'}"
    return False, f"different kinds: {KINDS[given.kind]} and {KINDS[wanted.kind]}"


KINDS = {
    "tree": "an expression",
    "words": "words",
    "ratio": "a ratio",
    "base": "digits in a base",
    "choice": "a choice",
    "unsupported": "an expression",
}


def _letter(reading: Reading) -> str | None:
    """Return the letter of a choice, with or without brackets; None if it is not a choice."""
    if reading.kind == "choice":
        return reading.text
    return reading.text if LETTER.fullmatch(reading.text) else None


def _bases(given: Reading, wanted: Reading) -> tuple[bool, str]:
    """Compare digits and base. If one side has no base, compare only the digits."""
    digits = [reading.text.replace(" ", "") for reading in (given, wanted)]
    if digits[0] != digits[1]:
        return False, "different digits"
    if given.kind == wanted.kind == "base":
        return given.detail == wanted.detail, "the same digits and base" if given.detail == wanted.detail else "different bases"
    return True, "the same digits, a base left out"


def _trees(given: Reading, wanted: Reading) -> tuple[bool, str]:
    assert given.node is not None
    assert wanted.node is not None
    outcome = _outcome(given.node, wanted.node)
    # 100,200 may be a number or a list of two numbers. Try it as a list if the other answer is a list.
    if not outcome.equal and given.listed and wanted.node.kind == "list":
        outcome = _outcome(given.listed, wanted.node)
    elif not outcome.equal and wanted.listed and given.node.kind == "list":
        outcome = _outcome(given.node, wanted.listed)
    return outcome.equal, outcome.reason


def _outcome(given: Node, wanted: Node) -> scalars.Outcome:
    try:
        return forms.compare(given, wanted)
    except (TooLarge, Undefined, Unreadable) as error:
        return scalars.Outcome(False, f"not compared: {error}")
    except (ArithmeticError, ValueError) as error:
        # A function of mpmath does not converge or has a pole.
        return scalars.Outcome(False, f"not compared: {type(error).__name__}")
