"""What a layout is, and what reading foreign rows needs again and again."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from aster.chat.tools import ParsedCall
from aster.chat.writings import Exchange
from aster.jsonl import Row
from aster.transcript import Step, Transcript
from aster.types import CallStatus, StopReason, ToolCall

CODE_NAMES = ("code", "script", "python_code", "source", "input")
"""Arguments in which other sets keep the code of a Python tool."""
ANSWER_FIELDS = ("expected_answer", "ground_truth", "answer", "gts", "gt", "label")
ID_FIELDS = ("problem_id", "id", "idx", "uuid", "index")


class Unreadable(Exception):
    """A row is not what the layout says; the message is the reason, by which rows are counted."""


@dataclass(frozen=True, slots=True)
class Layout:
    """A layout: how its rows are read into transcripts, and how transcripts are written as its rows."""

    name: str
    about: str
    read: Callable[[Row], list[Transcript]] | None = None
    """Raises Unreadable. A row may hold several attempts."""
    write: Callable[[Transcript], Row] | None = None
    schema: Callable[[], Any] | None = None
    """The Parquet schema of written rows."""


def blank(row: Row, prompt: str) -> Transcript:
    """A transcript with what rows of every layout may say beside the dialogue."""
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
    """A text or number as text; anything else is none, and so is not-a-number, by which data frames mean a gap."""
    if isinstance(value, bool) or not isinstance(value, str | int | float) or value != value:
        return ""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip()


def digest(text: str) -> str:
    """A short hash that stands for a text."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def read_call(name: Any, given: Any) -> ParsedCall:
    """A call as data sets hold it: its arguments are an object, JSON of one, or the code itself."""
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
    """How a call ended, where a set does not say: read from its output."""
    if _LATE.search(output) and len(output) < 400:
        return CallStatus.TIMEOUT
    if "Traceback (most recent call last)" in output or _ERROR.match(output.strip().rsplit("\n", 1)[-1]):
        return CallStatus.ERROR
    return CallStatus.OK


def result(call: ParsedCall, output: str | None) -> ToolCall:
    """A call with its output. ``None``: the set has none."""
    if output is None:
        return ToolCall(call.code, CallStatus.MALFORMED, "", 0.0)
    return ToolCall(call.code, CallStatus.MALFORMED if call.error else guess_status(output), output, 0.0)


def finish(transcript: Transcript) -> Transcript:
    """Check a foreign dialogue, and say how it ended. Unreadable where it cannot be one."""
    if not transcript.steps:
        raise Unreadable("no turn of the assistant")
    for step in transcript.steps[:-1]:
        if not step.calls:
            raise Unreadable("a turn that does not call is followed by another")
    last = transcript.steps[-1]
    # Only a dialogue that was cut off ends in a call, with or without its result.
    transcript.stop_reason = StopReason.ANSWERED if not last.calls else StopReason.TOKEN_BUDGET
    return transcript


def add_exchanges(transcript: Transcript, exchanges: list[Exchange]) -> None:
    """The steps of a written-out dialogue. Unreadable where calls and results do not belong together."""
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
