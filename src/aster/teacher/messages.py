"""Messages of the chat API: a server's answer is read into a turn, and a turn is written into the next request."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any, Literal

from aster.chat.qwen3 import read_arguments
from aster.chat.tools import PYTHON, ParsedCall, ToolSchemas, whole_characters
from aster.chat.writing import split_thinking
from aster.chat.writings import WRITINGS, without_marks
from aster.errors import one_line
from aster.teacher.failures import Failure, unusable
from aster.types import ToolCall

Calls = Literal["tools", "code", "fenced", "harmony"]
SendReasoning = Literal["auto", "reasoning_content", "reasoning", "no"]
_NAME = re.compile(r"[^A-Za-z0-9_-]")
BYTES_A_TOKEN = 3
"""For an estimate before a server has counted the tokens. English and LaTeX have three to four bytes a token."""


@dataclass(frozen=True, slots=True)
class AskedCall:
    """A call, as the turn asks for it."""

    parsed: ParsedCall
    id: str
    name: str = "python"


@dataclass(frozen=True, slots=True)
class Answer:
    """One turn, read from a server's answer."""

    thinking: str
    text: str
    raw: str
    """The message's text unchanged, for servers that get it back as it was."""
    calls: list[AskedCall] = field(default_factory=list)
    finish_reason: str = "stop"
    prompt_tokens: int | None = None
    """As the server counts them; None where it does not say."""
    completion_tokens: int | None = None
    reasoning_field: str = "reasoning_content"
    """The message's field in which the reasoning came."""


def read_answer(where: str, body: dict[str, Any], calls: Calls, tools: ToolSchemas = PYTHON) -> Answer:
    """Read a chat completion. Failure where it is none, or where the turn is empty, withheld or without its marks. Mistakes of
    the model are in the calls' errors. ``where``: the address, for messages."""
    try:
        choice = body["choices"][0]
        message = choice["message"]
        raw = whole_characters(_text(message.get("content")))
        reason = str(choice.get("finish_reason") or "stop")
        name = next((key for key in ("reasoning_content", "reasoning") if isinstance(message.get(key), str)), "")
        thinking = whole_characters(message[name]) if name else ""
        usage = body.get("usage") or {}
        prompt_tokens, completion_tokens = (_count(usage.get(key)) for key in ("prompt_tokens", "completion_tokens"))
        asked = [_asked(call, number, tools) for number, call in enumerate(message.get("tool_calls") or [])]
    except (LookupError, TypeError, AttributeError):
        raise unusable(where, body) from None
    if reason == "content_filter":
        raise Failure("content_filter", f"{where}: the server withheld the turn")
    if without_marks(raw):
        raise Failure(
            "stripped_marks",
            f"{where}: the text names Harmony's channels without their marks ({one_line(raw, 40)}...), so it cannot be read; "
            "let the server parse reasoning and calls itself (vLLM: --tool-call-parser openai), or leave the marks in "
            "(request: {skip_special_tokens: false}) and set calls to harmony",
        )
    if calls == "tools":
        within, text = split_thinking(raw) if not thinking else ("", raw.strip())
    else:
        writing = WRITINGS[calls]
        raw = raw if reason == "length" else writing.close(raw)
        turn = writing.parse(raw)
        within, text = turn.thinking, turn.content
        asked += [AskedCall(call, f"call_{number}") for number, call in enumerate(turn.calls, start=len(asked))]
    thinking = "\n\n".join(part.strip() for part in (thinking, within) if part.strip())
    # A model that reaches its limit of tokens while it thinks has no text yet; that is no failure of the server.
    if not (thinking or text or asked) and reason != "length":
        raise Failure("empty_answer", f"{where}: a turn without reasoning, text or calls ({reason})")
    return Answer(thinking, text, raw, asked, reason, prompt_tokens, completion_tokens, name or "reasoning_content")


def turn_message(answer: Answer, calls: Calls, send: SendReasoning, tools: ToolSchemas = PYTHON) -> dict[str, Any]:
    """The turn as a message of the next request."""
    if calls in ("code", "fenced"):
        message: dict[str, Any] = {"role": "assistant", "content": answer.raw}
    else:
        message = {"role": "assistant", "content": answer.text}
        if answer.calls:
            message["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.name, "arguments": arguments(tools.arguments_of(call.parsed))},
                }
                for call in answer.calls
            ]
    if send != "no" and answer.thinking and calls not in ("code", "fenced"):
        message[answer.reasoning_field if send == "auto" else send] = answer.thinking
    return message


def result_messages(answer: Answer, results: list[ToolCall], calls: Calls) -> list[dict[str, Any]]:
    """The outputs of the turn's calls as messages of the next request."""
    if calls in ("code", "fenced"):
        return [{"role": "user", "content": WRITINGS[calls].results([result.output for result in results])}]
    return [
        {"role": "tool", "tool_call_id": call.id, "content": result.output}
        for call, result in zip(answer.calls, results, strict=True)
    ]


def arguments(given: dict[str, Any]) -> str:
    """A call's arguments as the API wants them: JSON in a string. Templates parse it, so a malformed call is sent as valid JSON
    too."""
    return json.dumps(given, ensure_ascii=False)


def estimate(messages: list[dict[str, Any]]) -> int:
    """An estimate of the tokens in messages that no server has counted yet."""
    return sum(len(json.dumps(message, ensure_ascii=False).encode("utf-8", "replace")) for message in messages) // BYTES_A_TOKEN


def _asked(call: dict[str, Any], number: int, tools: ToolSchemas) -> AskedCall:
    function = call["function"]
    name, given = function.get("name"), function.get("arguments")
    text = given if isinstance(given, str) else "" if given is None else json.dumps(given)
    identity = call["id"] if isinstance(call.get("id"), str) and call["id"] else f"call_{number}"
    shown = _NAME.sub("_", str(name))[:64] or "unnamed"
    if name and tools.find(name) is not None:
        return AskedCall(read_arguments(whole_characters(text), tools, str(name)), identity, shown)
    known = " or ".join(tool.name for tool in tools.tools) or "none"
    error = f"there is no tool named {shown}; there is {known}"
    return AskedCall(ParsedCall(whole_characters(text), error), identity, shown)


def _text(content: Any) -> str:
    """A message's text. Some servers send it in parts."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    return "".join(part["text"] for part in content if part.get("type", "text") in ("text", "output_text"))


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
