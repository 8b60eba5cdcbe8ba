"""Short constructors of transcripts for tests."""

from __future__ import annotations

from typing import Any

from aster.transcript import Step, Transcript
from aster.types import CallStatus, StopReason, ToolCall

OK = CallStatus.OK


def step(thinking: str = "", *cells: tuple[str, str] | str, text: str = "", status: CallStatus = OK, **more: Any) -> Step:
    """A turn. A cell is given as its code, or as its code and output."""
    pairs = [(cell, "") if isinstance(cell, str) else cell for cell in cells]
    return Step(thinking, text, [ToolCall(code, status, output, 0.0) for code, output in pairs], **more)


def transcript(
    name: str, *steps: Step, answer: str = "", reward: float | None = 1.0, sample: int = 0, **more: Any
) -> Transcript:
    """An attempt that ends with its answer."""
    ending = [step("", text=f"\\boxed{{{answer}}}")] if answer else []
    given: dict[str, Any] = {"prompt": f"What is it, {name}?", "stop_reason": StopReason.ANSWERED, "reward": reward}
    return Transcript(name, sample, steps=[*steps, *ending], answer=answer or None, **{**given, **more})


def calls(name: str, count: int, *, status: CallStatus = OK, **more: Any) -> Transcript:
    """An attempt with ``count`` calls."""
    return transcript(name, *(step("", (f"x = {number}", ""), status=status) for number in range(count)), **more)
