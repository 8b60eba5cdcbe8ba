r"""Whether a prediction equals the known answer. Reward and evaluation both ask here and nowhere else.

A prediction is the text of the last ``\boxed{}`` alone (:func:`aster.core.boxed.extract_boxed`). Plain numbers and
equal texts are decided in this process, in microseconds. The rest goes to Math-Verify, which can hang for good inside one
arithmetic operation (a power tower), so it runs in processes of its own (:mod:`aster.grading.worker`) that are killed when
they are late.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal

from aster.grading import pool

LONGEST = 1000
"""Characters of a prediction or answer that Math-Verify is shown at most. Its parser's time grows with the length, and a
final answer is short: without a limit, a policy that fills its box with noise would cost the full time limit each time."""

NUMBER = re.compile(r"[+-]?(?:[0-9]+|[0-9]{1,3}(?:,[0-9]{3})+)(?:\.[0-9]*)?|[+-]?\.[0-9]+")
CLOSE = Decimal("1e-6")
"""Relative difference under which two decimals are left to Math-Verify's rounding."""

SPACING = re.compile(r"\\[,;:! ]|\\q?quad(?![a-zA-Z])|~")
SIZING = re.compile(r"\\(?:left|right|big|Big|bigg|Bigg|displaystyle)(?![a-zA-Z])")
FRACTION = re.compile(r"\\[dt]frac(?![a-zA-Z])")
TEXT = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox)\s*\{([^{}\\]*)\}")
INNER_SPACE = re.compile(r"(?<![0-9A-Za-z])\s+|\s+(?![0-9A-Za-z])")


@dataclass(frozen=True)
class Verdict:
    """Right or wrong, and how that was found."""

    correct: bool
    reason: str
    """``integer``, ``decimal``, ``same text``, ``no answer``, ``math-verify: ...``."""


def verify(prediction: str | None, answer: str, seconds: float = 5.0) -> Verdict:
    """Compare a prediction with the known answer. Thread-safe.

    ``seconds`` limits the wall-clock time Math-Verify may take, once a worker is free and warm. Whatever the prediction is,
    the result is a verdict: a time-out and a worker that crashes (twice, the second time in a fresh process) are incorrect,
    and the reason says so. UserError only where no worker process can be started at all, which is a broken installation
    and not a wrong answer.
    """
    verdict = fast_verdict(prediction, answer)
    if verdict is not None or prediction is None:
        return verdict or Verdict(False, "no answer")
    if len(prediction) > LONGEST:
        return Verdict(False, f"too long: {len(prediction)} characters, at most {LONGEST} are compared")
    if len(answer) > LONGEST:
        return Verdict(False, f"the known answer is too long: {len(answer)} characters, at most {LONGEST} are compared")
    return Verdict(*pool.ask(bare(prediction), bare(answer), seconds))


def fast_verdict(prediction: str | None, answer: str) -> Verdict | None:
    r"""The verdict where it is cheap, else None.

    Decided here: no prediction or an empty one; two plain numbers (``025``, ``+5``, ``1,234``, ``5.0``, with ``$``, spaces
    or a full stop around them), by exact value; texts that are the same but for spacing, ``\left``/``\right``, ``\dfrac``
    for ``\frac`` and a ``\text{}`` around the whole. Two decimals that differ by less than a millionth are left open.
    """
    if prediction is None:
        return Verdict(False, "no answer")
    given, wanted = canonical(prediction), canonical(answer)
    if not given:
        return Verdict(False, "empty answer")
    first, second = number(given), number(wanted)
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


def bare(text: str) -> str:
    r"""The text without what surrounds an answer: white space, ``$`` or ``\( \)`` delimiters, one full stop."""
    text = text.strip().replace("−", "-")
    before = None
    while text != before:
        before = text
        text = text.strip()
        if text.endswith(".") and not text.endswith(".."):
            text = text[:-1]
        text = text.removeprefix("$").strip()
        if text.endswith("$") and not text.endswith("\\$"):
            text = text[:-1]
        for opening, closing in (("\\(", "\\)"), ("\\[", "\\]")):
            if text.startswith(opening) and text.endswith(closing):
                text = text[2:-2]
    return text


def canonical(text: str) -> str:
    """One spelling of a text: see :func:`fast_verdict` for what does not count."""
    text = bare(text).replace("{,}", ",")
    text = re.sub(r"(?<=[0-9])\\[,!](?=[0-9]{3}(?![0-9]))", ",", text)
    text = FRACTION.sub(r"\\frac", SIZING.sub("", SPACING.sub(" ", text)))
    whole = TEXT.fullmatch(text.strip())
    if whole:
        text = whole[1]
    return INNER_SPACE.sub("", re.sub(r"\s+", " ", text)).strip()


def number(text: str) -> Decimal | None:
    """The exact value of a plain number, thousands commas allowed; None for anything else."""
    return Decimal(text.replace(",", "")) if NUMBER.fullmatch(text) else None
