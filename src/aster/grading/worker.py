"""The process in which Math-Verify runs: ``python -m aster.grading.worker``, JSON lines in and out.

In: ``{"prediction": ..., "answer": ...}``. Out: ``{"ready": true}`` once, then one ``{"correct": ..., "reason": ...}`` per
request. The parent kills a worker that exceeds the time limit, and the kernel kills a worker whose parent has died
(:mod:`aster.process`). Both work even inside one endless arithmetic operation. Math-Verify's own time limits do not, because
they run a Python handler, so they are turned off here.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import resource
import sys
from functools import lru_cache
from typing import IO, Any

MEMORY = 2 * 1024**3
"""Limit of the address space in bytes. Large powers need much memory as well as time."""

AGREEMENT = 1e-5
"""Largest relative difference at which Math-Verify's "equal" is accepted for two numbers. Math-Verify rounds to six decimals
and drops small values, so it would call ``1/2^{98}`` and ``1/2^{99}`` equal."""

REWRITES = (
    (re.compile(r"(?<!\\)\$"), ""),
    # Python's spelling of powers and pi, and one LaTeX error that changes the value: \sqrt(2) is parsed as an empty root.
    (re.compile(r"\*\*"), "^"),
    (re.compile(r"(?<![\\A-Za-z])pi(?![A-Za-z])"), r"\\pi "),
    (re.compile(r"\\sqrt\s*\(([^()]*)\)"), r"\\sqrt{\1}"),
)
SIGNS = re.compile(r"\\(?:pm|mp)(?![A-Za-z])")


@lru_cache(maxsize=256)
def read(text: str) -> list[Any]:
    r"""Parse an answer with Math-Verify: a list of a sympy object and its text, of only the text, or an empty list.

    The text is passed as the content of a ``\boxed{}``, and the extraction of bare expressions is off: it would take the last
    number of ``3x - y + 13 = 0`` as the whole answer and find any two such equations equal. ``a \pm b`` is passed as
    ``a + b, a - b``, because Math-Verify finds the two different. Results are cached, because the same answer is compared with
    many predictions.
    """
    from math_verify import LatexExtractionConfig, parse

    for pattern, replacement in REWRITES:
        text = pattern.sub(replacement, text)
    if SIGNS.search(text):
        upper = SIGNS.sub(lambda sign: "+" if sign[0] == r"\pm" else "-", text)
        lower = SIGNS.sub(lambda sign: "-" if sign[0] == r"\pm" else "+", text)
        text = f"{upper}, {lower}"
    boxed = LatexExtractionConfig(boxed_match_priority=0)
    return parse(rf"\boxed{{{text}}}", [boxed], extraction_mode="first_match", parsing_timeout=None)


def compare(prediction: str, answer: str) -> tuple[bool, str]:
    """Compare two answers with Math-Verify and return whether they are equal, and the reason.

    This may never return and may use up all memory, so run it only in a worker process.
    """
    from math_verify import verify

    wanted, given = read(answer), read(prediction)
    if not wanted:
        return False, "math-verify: cannot read the known answer"
    if not given:
        return False, "math-verify: cannot read the prediction"
    if _states_nothing(given[0]) and not isinstance(wanted[0], (*_relations(), str)):
        return False, "math-verify: an equation that states no value"
    if not verify(wanted, given, timeout_seconds=None):
        return False, "math-verify: not equal"
    if "%" not in prediction + answer and _differ(wanted[0], given[0]):
        return False, "math-verify: equal only when rounded"
    return True, "math-verify: equal"


def _relations() -> tuple[type, ...]:
    from sympy import And
    from sympy.core.relational import Relational

    return (Relational, And)


def _states_nothing(value: Any) -> bool:
    """Return whether the value is an equation ``... = 0`` that does not state the value of a name.

    If only the prediction is an equation, Math-Verify compares its right side with the answer. Every equation can be written as
    ``... = 0``, so a right side of 0 means nothing, unless the left side is a single name or contains only numbers.
    """
    from sympy import Eq

    if not isinstance(value, Eq) or value.rhs != 0:
        return False
    names = value.lhs.free_symbols
    return bool(names) and not (value.lhs.is_Symbol or value.lhs.is_Function)


def _differ(first: Any, second: Any) -> bool:
    """Return whether both are numbers (or equations that state one) that differ by more than :data:`AGREEMENT`."""
    from sympy import Abs, Eq, Expr

    first, second = (value.rhs if isinstance(value, Eq) else value for value in (first, second))
    if not all(isinstance(value, Expr) and not value.free_symbols and value.is_number for value in (first, second)):
        return False
    one, other = first.doit().evalf(30), second.doit().evalf(30)
    largest = max(Abs(one), Abs(other))
    return bool(largest.is_finite and Abs(one - other) > AGREEMENT * largest)


def main() -> None:
    """Answer requests until the input ends."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    # Redirect stdout, so that text printed by a library cannot be taken as a reply.
    os.dup2(2, 1)
    logging.disable(logging.CRITICAL)
    allowed = resource.getrlimit(resource.RLIMIT_AS)[1]
    memory = MEMORY if allowed == resource.RLIM_INFINITY else min(MEMORY, allowed)
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # The first comparison builds the tables of the grammar. Do it before the first request, which has a time limit.
    compare(r"\frac{1}{2}", "0.5")
    _write(replies, {"ready": True})
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    os.dup2(2, 1)
    for line in sys.stdin.buffer:
        request = json.loads(line)
        try:
            correct, reason = compare(request["prediction"], request["answer"])
        except Exception as error:  # noqa: BLE001 - the input is arbitrary text of a policy
            correct, reason = False, f"math-verify: {type(error).__name__}"
        _write(replies, {"correct": correct, "reason": reason})


def _write(stream: IO[str], record: dict[str, Any]) -> None:
    stream.write(json.dumps(record) + "\n")
    stream.flush()


if __name__ == "__main__":
    # The parent may close the pipe at any time: that is the normal end of a worker.
    with contextlib.suppress(BrokenPipeError):
        main()
