"""From what an attempt said last to its reward: the same for token policies and for teachers that write text."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from aster.grading.boxed import extract_boxed
from aster.grading.verify import Verdict, fast_verdict, verify
from aster.types import StopReason


@dataclass(frozen=True, slots=True)
class Grade:
    """What an attempt is worth."""

    answer: str | None
    """What it gave as its answer."""
    verdict: Verdict


async def grade_final(text: str | None, stop_reason: StopReason | None, expected: str) -> Grade:
    """Grade the final turn's text: never thinking, code or tool output. An attempt that did not answer has none (``text`` is
    then of no account)."""
    if text is None or stop_reason is not StopReason.ANSWERED:
        return Grade(None, Verdict(False, f"no final answer ({stop_reason})"))
    answer = extract_boxed(text)
    verdict = fast_verdict(answer, expected)
    if verdict is None:
        verdict = await asyncio.to_thread(verify, answer, expected)
    return Grade(answer, verdict)
