"""The process in which Math-Verify runs: ``python -m aster.grading.worker``, JSON lines in and out.

In: ``{"prediction": ..., "answer": ...}``. Out: ``{"ready": true}`` once, then one ``{"correct": ..., "reason": ...}`` for
each. The parent kills a worker that is late, and the kernel kills one whose parent is gone (:mod:`aster.process`): both work in
the middle of one endless arithmetic operation. Math-Verify's own time limits do not, because they run a Python handler; they
are turned off here.
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
"""Bytes of address space. Big powers fill memory as fast as they burn time."""

AGREEMENT = 1e-5
"""Largest relative difference of two numbers that Math-Verify may call equal. It rounds to six decimals, and chops what is
small, so that to it ``1/2^{98}`` equals ``1/2^{99}``."""

REWRITES = (
    (re.compile(r"(?<!\\)\$"), ""),
    # Answers copied from Python's output, and the one LaTeX slip that changes the value: \sqrt(2) is read as an empty root.
    (re.compile(r"\*\*"), "^"),
    (re.compile(r"(?<![\\A-Za-z])pi(?![A-Za-z])"), r"\\pi "),
    (re.compile(r"\\sqrt\s*\(([^()]*)\)"), r"\\sqrt{\1}"),
)
SIGNS = re.compile(r"\\(?:pm|mp)(?![A-Za-z])")


@lru_cache(maxsize=256)
def read(text: str) -> list[Any]:
    r"""Math-Verify's reading of an answer: a sympy object and its text, the text alone, or nothing.

    The text is shown as the content of a ``\boxed{}``, with the extraction of bare expressions turned off: that one takes the
    last number of ``3x - y + 13 = 0`` for the whole, and so finds any two such equations equal.
    The same answer is compared with many predictions, so what was read is kept.
    ``a \pm b`` is shown as ``a + b, a - b``, for Math-Verify finds the two unequal.
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
    """Whether Math-Verify finds the two equal, and how. May take forever, and all memory."""
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
    """Whether it is an equation ``... = 0`` of more than names.

    Math-Verify compares the right side of a predicted equation with an answer that is none. Every equation can be brought
    to the form ``... = 0``, so that 0 says nothing, unless the left side is a name or a calculation with numbers alone.
    """
    from sympy import Eq

    if not isinstance(value, Eq) or value.rhs != 0:
        return False
    names = value.lhs.free_symbols
    return bool(names) and not (value.lhs.is_Symbol or value.lhs.is_Function)


def _differ(first: Any, second: Any) -> bool:
    """Whether both are numbers (or equations that state one) and further apart than :data:`AGREEMENT`."""
    from sympy import Abs, Eq, Expr

    first, second = (value.rhs if isinstance(value, Eq) else value for value in (first, second))
    if not all(isinstance(value, Expr) and not value.free_symbols and value.is_number for value in (first, second)):
        return False
    one, other = first.doit().evalf(30), second.doit().evalf(30)
    largest = max(Abs(one), Abs(other))
    return bool(largest.is_finite and Abs(one - other) > AGREEMENT * largest)


def main() -> None:
    """Serve until the input ends."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    # What a library prints must not look like a reply.
    os.dup2(2, 1)
    logging.disable(logging.CRITICAL)
    allowed = resource.getrlimit(resource.RLIMIT_AS)[1]
    memory = MEMORY if allowed == resource.RLIM_INFINITY else min(MEMORY, allowed)
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # The first comparison builds the grammar's tables; that is not to be charged to anyone's time limit.
    compare(r"\frac{1}{2}", "0.5")
    _write(replies, {"ready": True})
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    os.dup2(2, 1)
    for line in sys.stdin.buffer:
        request = json.loads(line)
        try:
            correct, reason = compare(request["prediction"], request["answer"])
        except Exception as error:  # noqa: BLE001 - the input is whatever a policy wrote
            correct, reason = False, f"math-verify: {type(error).__name__}"
        _write(replies, {"correct": correct, "reason": reason})


def _write(stream: IO[str], record: dict[str, Any]) -> None:
    stream.write(json.dumps(record) + "\n")
    stream.flush()


if __name__ == "__main__":
    # Nobody to answer to any more is the ordinary end of a worker.
    with contextlib.suppress(BrokenPipeError):
        main()
