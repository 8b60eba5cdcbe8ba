"""The class Layout, and functions that the layouts share for reading other projects' rows."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from aster.chat.tools import ParsedCall
from aster.chat.writings import Exchange
from aster.data.problems import digest
from aster.jsonl import Row
from aster.transcript import Step, Transcript
from aster.types import CallStatus, StopReason, ToolCall

CODE_NAMES = ("code", "script", "python_code", "source", "input")
"""Names that other projects give to the code argument of their Python tool."""
ANSWER_FIELDS = ("expected_answer", "ground_truth", "answer", "gts", "gt", "label")
ID_FIELDS = ("problem_id", "id", "idx", "uuid", "index")


class Unreadable(Exception):
    """A row does not fit the layout. Rows are counted by message, so rows with the same fault must give the same message."""


@dataclass(frozen=True, slots=True)
class Layout:
    """A layout of rows: how to read its rows into transcripts, and how to write transcripts as its rows."""

    name: str
    about: str
    read: Callable[[Row], list[Transcript]] | None = None
    """Reads a row, which may hold several attempts. Raises Unreadable."""
    write: Callable[[Transcript], Row] | None = None
    schema: Callable[[], Any] | None = None
    """Returns the Parquet schema of written rows."""


def blank(row: Row, prompt: str) -> Transcript:
    """Return a transcript with the fields that rows of any layout may have (id, known answer, source), without steps."""
    prompt = prompt.strip()
    if not prompt:
        raise Unreadable("no prompt")
    identity = next((text for key in ID_FIELDS if (text := _plain(row.get(key)))), "")
    extra = row.get("extra_info")
    if not identity and isinstance(extra, dict):
        identity = _plain(extra.get("index"))
    source = row.get("data_source") or row.get("source")
    return Transcript(
        identity or digest(prompt),
        0,
        prompt,
        _expected(row),
        source=source if isinstance(source, str) else "",
    )


def _expected(row: Row) -> str:
    model = row.get("reward_model")
    found = [model.get("ground_truth")] if isinstance(model, dict) else []
    for value in (*found, *(row.get(name) for name in ANSWER_FIELDS)):
        if isinstance(value, list) and len(value) == 1:
            value = value[0]
        if text := _plain(value):
            return text
    return ""


def _plain(value: Any) -> str:
    """Return a text or number as text; "" for anything else. NaN counts as missing: data frames store it for a gap."""
    if isinstance(value, bool) or not isinstance(value, str | int | float) or value != value:
        return ""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip()


def read_call(name: Any, given: Any) -> ParsedCall:
    """Read a call from a data set. Its arguments are an object, the JSON text of one, or the code itself."""
    if isinstance(given, str) and given.lstrip().startswith("{"):
        try:
            given = json.loads(given)
        except (ValueError, RecursionError) as error:
            return ParsedCall(given, f"the arguments are not valid JSON: {error}")
    if isinstance(given, str):
        return ParsedCall(given)
    if isinstance(given, dict):
        found = [given[key] for key in CODE_NAMES if isinstance(given.get(key), str)]
        if found:
            return ParsedCall(found[0])
    raise Unreadable(f"a call of another tool than Python ({str(name)[:40]})")


_ERROR = re.compile(r"(?:\w+\.)*\w*(?:Error|Exception|Interrupt|Exit)(?::|\Z)")
_LATE = re.compile(r"\btimed?[ -]?outs?\b|TimeoutError|exceeded the time limit", re.IGNORECASE)


def guess_status(output: str) -> CallStatus:
    """Guess from a call's output how the call ended, for sets that do not record it."""
    if _LATE.search(output) and len(output) < 400:
        return CallStatus.TIMEOUT
    if "Traceback (most recent call last)" in output or _ERROR.match(output.strip().rsplit("\n", 1)[-1]):
        return CallStatus.ERROR
    return CallStatus.OK


def result(call: ParsedCall, output: str | None) -> ToolCall:
    """Return a call with its output. ``None``: the set has no output for it."""
    if output is None:
        return ToolCall(call.code, CallStatus.MALFORMED, "", 0.0)
    return ToolCall(call.code, CallStatus.MALFORMED if call.error else guess_status(output), output, 0.0)


def finish(transcript: Transcript) -> Transcript:
    """Check another project's dialogue and set its stop reason. Raises Unreadable if turns are missing."""
    if not transcript.steps:
        raise Unreadable("no turn of the assistant")
    for step in transcript.steps[:-1]:
        if not step.calls:
            raise Unreadable("a turn that does not call is followed by another")
    last = transcript.steps[-1]
    # A dialogue ends in a call, with or without its result, only if it was cut off.
    transcript.stop_reason = StopReason.ANSWERED if not last.calls else StopReason.TOKEN_BUDGET
    return transcript


def add_exchanges(transcript: Transcript, exchanges: list[Exchange]) -> None:
    """Add the steps of a dialogue written as text. Raises Unreadable if calls and results do not match."""
    for number, exchange in enumerate(exchanges):
        calls, outputs = exchange.turn.calls, exchange.outputs
        if len(outputs) > len(calls):
            raise Unreadable("a result without a call")
        if len(outputs) < len(calls) and number < len(exchanges) - 1:
            raise Unreadable("a call without a result")
        padded: list[str | None] = [*outputs, *[None] * (len(calls) - len(outputs))]
        step = Step(exchange.turn.thinking, exchange.turn.content)
        step.calls = [result(call, output) for call, output in zip(calls, padded, strict=True)]
        transcript.steps.append(step)
