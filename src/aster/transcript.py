"""An attempt as text, whatever model wrote it: the form that teachers, imported sets and curation work with.

A :class:`~aster.types.Trajectory` is tokens of one model. A transcript is the same dialogue before any tokenizer; a student's
dialect renders it as tokens (:mod:`aster.data.rendering`). A *set* is a ``.jsonl`` or ``.jsonl.gz`` file of transcripts, one
per line.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from aster.types import CallStatus, StopReason, ToolCall


@dataclass(slots=True)
class Step:
    """One assistant turn, with the results of its calls."""

    thinking: str = ""
    """Reasoning before the text and the calls."""
    text: str = ""
    """The turn's text outside its thinking and its calls."""
    calls: list[ToolCall] = field(default_factory=list)
    """Its calls in order, each with the output the model saw. Empty in the turn that answers."""
    tokens: int | None = None
    """Tokens the model wrote in this turn, counted by its own tokenizer or its server; None where they were not counted."""


@dataclass(slots=True)
class Usage:
    """What an attempt cost."""

    prompt_tokens: int = 0
    """Tokens read, over all requests (a dialogue of n turns is read n times)."""
    completion_tokens: int = 0
    """Tokens written, reasoning included."""
    cost: float = 0.0
    """Money, in the currency of the prices; 0 without prices."""


@dataclass(slots=True)
class Transcript:
    """One attempt at one problem, as text."""

    problem_id: str
    sample: int
    """Which of the attempts at the problem this is."""
    prompt: str
    """The user's message, without system text and tool schema."""
    expected: str = ""
    """The known answer; empty where the set does not have it."""
    steps: list[Step] = field(default_factory=list)
    stop_reason: StopReason | None = None
    answer: str | None = None
    """The final answer that was given, or None."""
    reward: float | None = None
    """1 right, 0 wrong, or what the environment gives; None where it has not been scored."""
    verdict: str = ""
    """How the reward came about, in words."""
    error: str = ""
    """For a ``stop_reason`` in :data:`aster.types.FAULTS`: what happened."""
    seconds: float = 0.0
    seed: int = 0
    system: str = ""
    """The dialogue's system text, without the tools."""
    setup: str = ""
    """Python that ran in the session before the first call."""
    author: str = ""
    """The model or expert that wrote it."""
    source: str = ""
    """The problem's origin, such as the data set's name."""
    usage: Usage | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    """What else is known, for instance ``difficulty`` (0 to 1 or a name) and ``topic``."""

    @property
    def calls(self) -> list[ToolCall]:
        """All calls in order, malformed ones too."""
        return [call for step in self.steps for call in step.calls]

    @property
    def tool_calls(self) -> int:
        """Interaction density: the number of calls whose code ran."""
        return sum(call.status is not CallStatus.MALFORMED for call in self.calls)

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dict; :meth:`from_json` is its inverse."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Transcript:
        """The inverse of :meth:`to_json`. KeyError, TypeError or ValueError where a field is missing or unknown."""
        steps = [
            Step(**{**step, "calls": [ToolCall(**{**c, "status": CallStatus(c["status"])}) for c in step["calls"]]})
            for step in record["steps"]
        ]
        reason, usage = record.get("stop_reason"), record.get("usage")
        return cls(
            **{
                **record,
                "steps": steps,
                "stop_reason": StopReason(reason) if reason else None,
                "usage": Usage(**usage) if usage else None,
            }
        )
