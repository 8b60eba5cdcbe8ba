"""What a teacher's server can do wrong, by name. A name begins :attr:`Transcript.error`, and reports count by it."""

from __future__ import annotations

import re
from typing import Any

from aster.errors import UserError, one_line
from aster.http import ServerError
from aster.transcript import Transcript
from aster.types import FAULTS

FAILURES = {
    "timeout": "no answer to a request within the time it may take",
    "rate_limited": "busy (429, 503) for as long as a request may take",
    "connection_lost": "the connection broke, at every attempt",
    "server_error": "an error of the server's own (5xx), at every attempt",
    "malformed_body": "an answer that is no JSON, or no chat completion",
    "empty_answer": "a turn without reasoning, text or calls",
    "stripped_marks": "a turn of a Harmony model (GPT-OSS) whose marks the server took off: where its parts begin is lost",
    "content_filter": "the server withheld the turn",
    "refused": "a request that the server will not serve (4xx)",
    "context_length": "the dialogue does not fit in the server's context; the attempt ends with token_budget",
}
"""Each ends its attempt, with ``engine_error`` unless it says otherwise. What a model does wrong ends nothing: a call with
malformed arguments or of an unknown tool gets an error as its result, and an endless loop of calls ends with call_budget."""

_CONTEXT = re.compile(r"context[ _](?:length|window|size)|maximum context|max_model_len|too (?:long|large).*token", re.I | re.S)
_LONGEST = re.compile(r"(?:maximum context length is|max_model_len|context (?:length|window) of)\D{0,20}(\d+)", re.I)
_READ = re.compile(
    r"(?:request has|contains at least|resulted in)\s+(\d+)\s+(?:input )?tokens|(\d+) (?:in the messages|from the input)"
)


class Failure(Exception):
    """An attempt cannot go on, by one of :data:`FAILURES`."""

    def __init__(self, name: str, detail: str) -> None:
        super().__init__(f"{name}: {detail}")
        self.name = name


class TeacherGone(UserError):
    """The server does not answer any more: no attempt can be made."""


def failure_of(transcript: Transcript) -> str:
    """The name of what ended the attempt, or of how it ended where no server did; empty where it ended well."""
    name = transcript.error.partition(":")[0]
    if name in FAILURES:
        return name
    return str(transcript.stop_reason) if transcript.stop_reason in FAULTS else ""


def failed(error: ServerError) -> Failure:
    """The failure that a server's error is."""
    if error.kind == "refused" and _CONTEXT.search(str(error)):
        return Failure("context_length", str(error))
    return Failure(error.kind, str(error))


def room_told(error: ServerError) -> int | None:
    """The tokens that a server says are left in its context after the prompt, read from its refusal; None where it does not
    tell (vLLM and OpenAI do)."""
    longest, read = _LONGEST.search(str(error)), _READ.search(str(error))
    if longest is None or read is None:
        return None
    return int(longest[1]) - int(next(group for group in read.groups() if group))


def unusable(where: str, answer: Any) -> Failure:
    """An answer that is JSON and no chat completion."""
    return Failure("malformed_body", f"{where}: the answer is no chat completion: {one_line(repr(answer))}")
