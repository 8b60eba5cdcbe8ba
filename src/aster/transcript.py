"""A trajectory as text: what teachers, imported sets and curation share, whatever model wrote it.

A :class:`~aster.types.Trajectory` is tokens of one model. A transcript is the same dialogue before any tokenizer: a
student's dialect renders it into tokens (:mod:`aster.data.rendering`). A *set* is a ``.jsonl`` or ``.jsonl.gz`` file of
transcripts, one a line.
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
    """What the turn says outside its thinking and its calls."""
    calls: list[ToolCall] = field(default_factory=list)
    """Its calls in order, each with the output the model saw. Empty in the turn that answers."""
    tokens: int | None = None
    """Tokens the model wrote in this turn, as its own tokenizer or its server counted them; None where nobody did."""


@dataclass(slots=True)
class Usage:
    """What an attempt cost at the teacher's."""

    prompt_tokens: int = 0
    """Tokens read, over all requests (a dialogue of n turns is read n times)."""
    completion_tokens: int = 0
    """Tokens written, reasoning included."""
    cost: float = 0.0
    """Money, in the currency of the prices that were given; 0 where none were."""


@dataclass(slots=True)
class Transcript:
    """One attempt at one problem, as text."""

    problem_id: str
    sample: int
    """Which of the attempts at the problem this is."""
    prompt: str
    """What the user asked, without system text and tool schema."""
    expected: str = ""
    """The known answer; empty where the set does not say."""
    steps: list[Step] = field(default_factory=list)
    stop_reason: StopReason | None = None
    answer: str | None = None
    """What was given as the final answer, or None."""
    reward: float | None = None
    """1 right, 0 wrong; None where nobody has verified it."""
    verdict: str = ""
    """How the verifier came to the reward."""
    error: str = ""
    """For ``engine_error`` and ``sandbox_error``: what happened."""
    seconds: float = 0.0
    seed: int = 0
    system: str = ""
    """System text of the dialogue, tools apart."""
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
