"""The failures of a teacher's server, by name. :attr:`Transcript.error` begins with the name, and reports count by it."""

from __future__ import annotations

import re
from typing import Any

from aster.errors import UserError, one_line
from aster.http import ServerError
from aster.transcript import Transcript
from aster.types import FAULTS

FAILURES = {
    "timeout": "no answer to a request within its time",
    "rate_limited": "the server was busy (429, 503) for all the time of a request",
    "connection_lost": "the connection failed at every attempt",
    "server_error": "the server had an error of its own (5xx) at every attempt",
    "malformed_body": "the answer is not JSON, or not a chat completion",
    "empty_answer": "a turn without reasoning, text or calls",
    "stripped_marks": "the server removed the marks between the parts of a turn of a Harmony model (GPT-OSS)",
    "content_filter": "the server withheld the turn",
    "refused": "the server refused the request (4xx)",
    "context_length": "the dialogue does not fit in the server's context; the attempt ends with token_budget",
}
"""Each ends its attempt, with ``engine_error`` unless it says otherwise. A model's mistakes end no attempt: a call with
malformed arguments or of an unknown tool gets an error as its result, and an endless loop of calls ends with call_budget."""

_CONTEXT = re.compile(r"context[ _](?:length|window|size)|maximum context|max_model_len|too (?:long|large).*token", re.I | re.S)
_LONGEST = re.compile(r"(?:maximum context length is|max_model_len|context (?:length|window) of)\D{0,20}(\d+)", re.I)
_READ = re.compile(
    r"(?:request has|contains at least|resulted in)\s+(\d+)\s+(?:input )?tokens|(\d+) (?:in the messages|from the input)"
)


class Failure(Exception):
    """An attempt cannot go on. ``name`` is one of :data:`FAILURES`."""

    def __init__(self, name: str, detail: str) -> None:
        super().__init__(f"{name}: {detail}")
        self.name = name


class TeacherGone(UserError):
    """The server no longer answers, so no attempt can be made."""


def failure_of(transcript: Transcript) -> str:
    """The name of the failure that ended an attempt, or its stop reason where something else than the server failed; empty
    where nothing did."""
    name = transcript.error.partition(":")[0]
    if name in FAILURES:
        return name
    return str(transcript.stop_reason) if transcript.stop_reason in FAULTS else ""


def failed(error: ServerError) -> Failure:
    """A server's error as a failure of the attempt."""
    if error.kind == "refused" and _CONTEXT.search(str(error)):
        return Failure("context_length", str(error))
    return Failure(error.kind, str(error))


def room_told(error: ServerError) -> int | None:
    """The tokens left in the server's context after the prompt, read from the text of its refusal; None where it does not say
    (vLLM and OpenAI do)."""
    longest, read = _LONGEST.search(str(error)), _READ.search(str(error))
    if longest is None or read is None:
        return None
    return int(longest[1]) - int(next(group for group in read.groups() if group))


def unusable(where: str, answer: Any) -> Failure:
    """The failure for an answer that is JSON but no chat completion."""
    return Failure("malformed_body", f"{where}: the answer is no chat completion: {one_line(repr(answer))}")
