"""Grade the last turn of an attempt, for policies that sample tokens and for teachers that write text."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from aster.grading.boxed import extract_boxed
from aster.grading.verify import Verdict, fast_verdict, verify
from aster.types import StopReason


@dataclass(frozen=True, slots=True)
class Grade:
    """The grade of an attempt."""

    answer: str | None
    """The answer that it gave; None if it gave none."""
    verdict: Verdict


async def grade_final(text: str | None, stop_reason: StopReason | None, expected: str) -> Grade:
    """Grade the text of the final turn (not its thinking, code or tool output) against the expected answer.

    An attempt that did not end with StopReason.ANSWERED has no answer; its ``text`` is ignored.
    """
    if text is None or stop_reason is not StopReason.ANSWERED:
        return Grade(None, Verdict(False, f"no final answer ({stop_reason})"))
    answer = extract_boxed(text)
    verdict = fast_verdict(answer, expected)
    if verdict is None:
        verdict = await asyncio.to_thread(verify, answer, expected)
    return Grade(answer, verdict)
