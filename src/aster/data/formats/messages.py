"""OpenAI's ``messages`` with ``tools``: the layout of TRL, verl's SFT and Open-AgentRL-SFT-3K.

Reasoning is in ``reasoning_content`` (or ``reasoning``), or in ``<think>`` at the beginning of the content. The arguments of a
call are an object or its JSON text. Content is a text or a list of text parts. A result belongs to the call whose id it names,
or to the first call without a result.
"""

from __future__ import annotations

import json
from typing import Any

from aster.chat.qwen3 import TOOL_SCHEMA, parse_calls
from aster.chat.tools import ParsedCall, whole_characters
from aster.chat.writing import split_thinking
from aster.data.formats.base import Layout, Unreadable, blank, finish, read_call, result
from aster.data.formats.extra import exact, ours, restore, with_extra
from aster.jsonl import Row
from aster.transcript import Step, Transcript
from aster.types import CallStatus, ToolCall

ROLES = {
    "function": "tool",
    "ipython": "tool",
    "observation": "tool",
    "developer": "system",
    "human": "user",
    "gpt": "assistant",
}
"""Other names for the four roles."""


def read(row: Row) -> list[Transcript]:
    """Read a row."""
    if (whole := exact(row)) is not None:
        return [whole]
    messages = row.get("messages")
    if isinstance(messages, str):
        try:
            messages = json.loads(messages)
        except (ValueError, RecursionError):
            raise Unreadable("the messages are not JSON") from None
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise Unreadable("no messages")
    return [dialogue(row, messages)]


def dialogue(row: Row, messages: list[dict[str, Any]]) -> Transcript:
    """Return the transcript of a row's messages. Raises Unreadable if roles are out of order or a call has no result."""
    plain = ours(row)
    system, prompt = "", ""
    steps: list[Step] = []
    pending: list[tuple[str, ParsedCall, int]] = []
    for message in messages:
        role = str(message.get("role"))
        role = ROLES.get(role, role)
        content = text_of(message.get("content"))
        if role == "system" and not prompt and not steps:
            system = content if plain else "\n\n".join(text for text in (system, content) if text)
        elif role == "user" and not steps:
            if prompt:
                raise Unreadable("several prompts before the first turn")
            prompt = content
        elif role == "user":
            raise Unreadable("the user speaks after the first turn")
        elif role == "assistant":
            if pending:
                raise Unreadable("a call without a result")
            step, pending = _turn(message, content, plain)
            steps.append(step)
        elif role == "tool":
            if not pending:
                raise Unreadable("a result without a call")
            named = [place for place, (identity, _, _) in enumerate(pending) if identity == message.get("tool_call_id")]
            _, call, place = pending.pop(named[0] if named else 0)
            # In a row that we wrote, everything but the text is restored from our column.
            steps[-1].calls[place] = ToolCall(call.code, CallStatus.OK, content, 0.0) if plain else result(call, content)
        else:
            raise Unreadable(f"a message of the role {role[:40]}")
    if plain:
        return restore(row, prompt, system, steps)
    transcript = blank(row, prompt)
    transcript.system, transcript.steps = system, steps
    return finish(transcript)


def text_of(content: Any) -> str:
    """Return the text of a message's content. Raises Unreadable if it is not text."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, list) and all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in content):
        return "".join(part["text"] for part in content)
    raise Unreadable("a message's content is not text")


def _turn(message: dict[str, Any], content: str, plain: bool) -> tuple[Step, list[tuple[str, ParsedCall, int]]]:
    """Return the turn with its calls, still without results, and those calls as (id, call, place in the turn)."""
    thinking = message.get("reasoning_content") or message.get("reasoning") or message.get("thinking") or ""
    if not isinstance(thinking, str):
        raise Unreadable("a message's reasoning is not text")
    calls: list[ParsedCall] = []
    asked = message.get("tool_calls") or []
    if not isinstance(asked, list):
        raise Unreadable("calls that are not a list")
    for call in asked:
        function = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(function, dict):
            raise Unreadable("a call that is not an object")
        calls.append(read_call(function.get("name"), function.get("arguments")))
    if not plain:
        if not thinking:
            thinking, content = split_thinking(content)
        if not calls:
            content, calls = parse_calls(content)
        thinking, content = thinking.strip(), content.strip()
    identities = [str(call.get("id")) for call in asked] or [""] * len(calls)
    waiting = [(identity, call, place) for place, (identity, call) in enumerate(zip(identities, calls, strict=True))]
    return Step(thinking, content, [result(call, None) for call in calls]), waiting


def write(transcript: Transcript) -> Row:
    """Write a row."""
    messages: list[dict[str, Any]] = [{"role": "system", "content": transcript.system}] if transcript.system else []
    messages.append({"role": "user", "content": transcript.prompt})
    number = 0
    for step in transcript.steps:
        first = number
        turn: dict[str, Any] = {"role": "assistant", "content": step.text, "reasoning_content": step.thinking}
        if step.calls:
            turn["tool_calls"] = [
                {
                    "id": f"call_{first + place}",
                    "type": "function",
                    "function": {"name": "python", "arguments": {"code": call.code}},
                }
                for place, call in enumerate(step.calls)
            ]
        messages.append(turn)
        for call in step.calls:
            messages.append({"role": "tool", "content": call.output, "tool_call_id": f"call_{number}"})
            number += 1
    return with_extra(transcript, {"messages": _whole(messages), "tools": [TOOL_SCHEMA]}, read)


def _whole(value: Any) -> Any:
    """Return a message tree with lone surrogates replaced, because other programs cannot read them."""
    if isinstance(value, str):
        return whole_characters(value)
    if isinstance(value, dict):
        return {key: _whole(item) for key, item in value.items()}
    return [_whole(item) for item in value] if isinstance(value, list) else value


def schema() -> Any:
    """Return the Parquet schema of written rows. Without it, the first rows would decide which columns there are."""
    import pyarrow as pa

    text = pa.string()
    call = pa.struct({"id": text, "type": text, "function": pa.struct({"name": text, "arguments": pa.struct({"code": text})})})
    message = pa.struct(
        {
            "role": text,
            "content": text,
            "reasoning_content": text,
            "tool_calls": pa.list_(call),
            "tool_call_id": text,
        }
    )
    described = pa.struct({"type": text, "description": text})
    parameters = pa.struct({"type": text, "properties": pa.struct({"code": described}), "required": pa.list_(text)})
    function = pa.struct({"name": text, "description": text, "parameters": parameters})
    return pa.schema(
        {
            "messages": pa.list_(message),
            "tools": pa.list_(pa.struct({"type": text, "function": function})),
            "aster": text,
        }
    )


MESSAGES = Layout("messages", "OpenAI's messages with tools: TRL, verl's SFT, Open-AgentRL", read, write, schema)
