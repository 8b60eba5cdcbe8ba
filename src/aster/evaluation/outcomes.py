"""The data of one attempt that evaluation uses, for attempts as tokens and as text."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from aster.transcript import Transcript
from aster.types import StopReason, Trajectory


@dataclass(frozen=True, slots=True)
class TurnCost:
    """The cost of one assistant turn and of the tool turn after it."""

    sampled: int | None
    """Tokens the policy wrote. None where they were not counted."""
    calls: int
    """Calls that got a result, malformed ones included."""
    response: int | None
    """Tokens of the tool's turn after it. None where there is none, or they were not counted."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One attempt: how it ended and what it cost."""

    problem_id: str
    sample: int
    reward: float
    """1: right. 0: wrong or without an answer. Rewards of other environments are limited to the range 0 to 1."""
    answer: str | None
    stop_reason: StopReason
    tool_calls: int
    """Calls whose code ran."""
    read_tokens: int
    """Tokens the policy read. A token counts once for each turn that it is the context of."""
    sampled_tokens: int
    """Tokens the policy wrote."""
    prompt_tokens: int | None
    """Length of the prompt in tokens. None where a server gave only text."""
    turns: tuple[TurnCost, ...]
    seconds: float
    clipped: bool = False
    """Whether the reward was outside 0 to 1."""

    @property
    def requests(self) -> int:
        """All calls that the budget counts, including those that could not be parsed."""
        return sum(turn.calls for turn in self.turns)

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dict; :meth:`from_json` is its inverse."""
        turns = [[turn.sampled, turn.calls, turn.response] for turn in self.turns]
        record = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        return {**record, "turns": turns}

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Outcome:
        """The inverse of :meth:`to_json`."""
        turns = tuple(TurnCost(*turn) for turn in record["turns"])
        return cls(**{**record, "turns": turns, "stop_reason": StopReason(record["stop_reason"])})


def outcome(attempt: Trajectory | Transcript) -> Outcome:
    """The outcome of an attempt. Raises ValueError where the attempt has not ended."""
    if attempt.stop_reason is None:
        raise ValueError(f"attempt {attempt.sample} at problem {attempt.problem_id!r} has not ended")
    prompt: int | None = None
    if isinstance(attempt, Trajectory):
        sampled = attempt.sampled_tokens
        read = sum(turn.start for turn in attempt.turns if turn.role == "assistant")
        prompt = attempt.turns[0].end if attempt.turns else 0
        after = {turn.start: turn.end - turn.start for turn in attempt.turns if turn.role == "tool"}
        turns = tuple(
            TurnCost(turn.end - turn.start, len(turn.calls), after.get(turn.end))
            for turn in attempt.turns
            if turn.role == "assistant"
        )
    else:
        usage = attempt.usage
        sampled = usage.completion_tokens if usage else sum(step.tokens or 0 for step in attempt.steps)
        read = usage.prompt_tokens if usage else 0
        turns = tuple(TurnCost(step.tokens, len(step.calls), None) for step in attempt.steps)
    return Outcome(
        problem_id=attempt.problem_id,
        sample=attempt.sample,
        reward=min(1.0, max(0.0, attempt.reward or 0.0)),
        clipped=not 0.0 <= (attempt.reward or 0.0) <= 1.0,
        answer=attempt.answer,
        stop_reason=attempt.stop_reason,
        tool_calls=attempt.tool_calls,
        read_tokens=read,
        sampled_tokens=sampled,
        prompt_tokens=prompt,
        turns=turns,
        seconds=attempt.seconds,
    )


def rewards_by_problem(outcomes: Iterable[Outcome]) -> dict[str, list[float]]:
    """The rewards of each problem, in the order of the outcomes."""
    found: dict[str, list[float]] = {}
    for each in outcomes:
        found.setdefault(each.problem_id, []).append(each.reward)
    return found
