"""What evaluation needs to know of one attempt, whether it came as tokens or as text."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from aster.core.transcript import Transcript
from aster.core.types import StopReason, Trajectory


@dataclass(frozen=True, slots=True)
class Outcome:
    """One attempt: how it ended and what it cost."""

    problem_id: str
    sample: int
    reward: float
    """1 right, 0 wrong or without an answer."""
    answer: str | None
    stop_reason: StopReason
    tool_calls: int
    """Calls whose code ran."""
    requests: int
    """All calls, those that could not be parsed among them: what the call budget counts."""
    sampled_tokens: int
    """Tokens the policy wrote."""
    read_tokens: int
    """Tokens the policy read: where each turn's context is sent anew, a token counts once a turn."""
    context_tokens: int | None
    """Prompt, sampled and tool tokens together; None where a server gave text alone."""
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dict."""
        return dataclasses.asdict(self)


def outcome(attempt: Trajectory | Transcript) -> Outcome:
    """The outcome of an attempt. ValueError where the attempt has not ended."""
    if attempt.stop_reason is None:
        raise ValueError(f"attempt {attempt.sample} at problem {attempt.problem_id!r} has not ended")
    if isinstance(attempt, Trajectory):
        sampled, context = attempt.sampled_tokens, len(attempt.token_ids)
        read = sum(turn.start for turn in attempt.turns if turn.role == "assistant")
    else:
        usage = attempt.usage
        sampled = usage.completion_tokens if usage else sum(step.tokens or 0 for step in attempt.steps)
        read, context = (usage.prompt_tokens if usage else 0), None
    return Outcome(
        problem_id=attempt.problem_id,
        sample=attempt.sample,
        reward=attempt.reward or 0.0,
        answer=attempt.answer,
        stop_reason=attempt.stop_reason,
        tool_calls=attempt.tool_calls,
        requests=len(attempt.calls),
        sampled_tokens=sampled,
        read_tokens=read,
        context_tokens=context,
        seconds=attempt.seconds,
    )


def rewards_by_problem(outcomes: Iterable[Outcome]) -> dict[str, list[float]]:
    """The rewards of each problem, in the order of the outcomes."""
    found: dict[str, list[float]] = {}
    for each in outcomes:
        found.setdefault(each.problem_id, []).append(each.reward)
    return found
