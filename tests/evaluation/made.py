"""Outcomes made by hand."""

from __future__ import annotations

from aster.evaluation import Outcome
from aster.evaluation.outcomes import TurnCost
from aster.types import StopReason


def made(
    problem: str,
    sample: int = 0,
    *,
    right: bool = False,
    answer: str | None = "1",
    reason: StopReason = StopReason.ANSWERED,
    turns: tuple[TurnCost, ...] = (TurnCost(10, 0, None),),
    seconds: float = 1.0,
) -> Outcome:
    """One outcome; by default a wrong answer of ten tokens after a prompt of five."""
    written = sum(turn.sampled or 0 for turn in turns)
    calls = sum(turn.calls for turn in turns)
    return Outcome(problem, sample, float(right), answer, reason, calls, 5 * len(turns), written, 5, turns, seconds)
