"""LLaMA-Factory's ``conversations``: turns with ``from`` (human, gpt, function_call, observation) and ``value``.

The ASTER reproduction's set has this layout. Other sets name the keys ``role`` and ``content`` and the roles ``function`` and
``tool``. A turn that calls the tool is ``<think>...</think>`` followed by JSON: an object with ``name`` and ``arguments``, or a
list of such objects. The results of several calls are in one observation, separated by the tags that Qwen's template puts
there.
"""

from __future__ import annotations

import json
from typing import Any

from aster.chat.qwen3 import TOOL_SCHEMA
from aster.chat.tools import ParsedCall, whole_characters
from aster.chat.writing import split_thinking
from aster.chat.writings import CHATML
from aster.data.formats.base import Layout, Unreadable, blank, finish, read_call, result
from aster.data.formats.extra import exact, ours, restore, with_extra
from aster.jsonl import Row
from aster.transcript import Step, Transcript
from aster.types import CallStatus, ToolCall

USERS = frozenset({"human", "user"})
ASSISTANTS = frozenset({"gpt", "assistant", "model"})
CALLS = frozenset({"function_call", "tool_call"})
RESULTS = frozenset({"observation", "tool", "tool_response", "ipython"})
BETWEEN = "\n</tool_response>\n<tool_response>\n"
"""Separator between the results of one turn. Qwen's template writes the same text between them."""


def read(row: Row) -> list[Transcript]:
    """Read a row."""
    if (whole := exact(row)) is not None:
        return [whole]
    turns = row.get("conversations") or row.get("conversation")
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise Unreadable("no conversations")
    plain = ours(row)
    system = row.get("system") if isinstance(row.get("system"), str) else ""
    prompt = ""
    steps: list[Step] = []
    pending: list[ParsedCall] = []
    for turn in turns:
        role, value = str(turn.get("from", turn.get("role"))), turn.get("value", turn.get("content"))
        if not isinstance(value, str):
            raise Unreadable("a turn's value is not text")
        # "function" is a call in LLaMA-Factory's layout and a result in OpenAI's old one. After a call it must be a result.
        if role in RESULTS or (role == "function" and pending):
            if not pending:
                raise Unreadable("a result without a call")
            steps[-1].calls += _results(pending, value, plain)
            pending = []
        elif pending:
            raise Unreadable("a call without a result")
        elif role in CALLS or role == "function":
            step, pending = _calling(value, plain)
            steps.append(step)
        elif role in ASSISTANTS:
            step, pending = _speaking(value, plain)
            steps.append(step)
        elif role == "system" and not steps:
            system = value
        elif role in USERS and not steps and not prompt:
            prompt = value
        elif role in USERS:
            raise Unreadable("the user speaks after the first turn" if steps else "several prompts before the first turn")
        else:
            raise Unreadable(f"a turn from {role[:40]}")
    if pending:
        steps[-1].calls += [result(call, None) for call in pending]
    if plain:
        return [restore(row, prompt, system or "", steps)]
    transcript = blank(row, prompt)
    transcript.system, transcript.steps = system or "", steps
    return [finish(transcript)]


def _results(calls: list[ParsedCall], value: str, plain: bool) -> list[ToolCall]:
    outputs = value.split(BETWEEN) if len(calls) > 1 else [value]
    if len(outputs) != len(calls):
        raise Unreadable(f"a turn with {len(calls)} calls and a different number of results")
    if plain:
        return [ToolCall(call.code, CallStatus.OK, output, 0.0) for call, output in zip(calls, outputs, strict=True)]
    return [result(call, _untagged(output)) for call, output in zip(calls, outputs, strict=True)]


def _untagged(output: str) -> str:
    """Return a result without ``<tool_response>`` tags around it."""
    text = output.strip()
    if text.startswith("<tool_response>") and text.endswith("</tool_response>"):
        return text.removeprefix("<tool_response>").removesuffix("</tool_response>").strip("\n")
    return output


def _calling(value: str, plain: bool) -> tuple[Step, list[ParsedCall]]:
    thinking, body = _split(value) if plain else split_thinking(value)
    if "<tool_call>" in body and not plain:
        turn = CHATML.parse(value)
        return Step(turn.thinking, turn.content), turn.calls
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        raise Unreadable("a call that is not JSON") from None
    calls = found if isinstance(found, list) else [found]
    if not calls or not all(isinstance(call, dict) for call in calls):
        raise Unreadable("a call that is not an object")
    inner = [call["function"] if isinstance(call.get("function"), dict) else call for call in calls]
    return Step(thinking), [read_call(call.get("name"), call.get("arguments", call.get("parameters"))) for call in inner]


def _speaking(value: str, plain: bool) -> tuple[Step, list[ParsedCall]]:
    if plain:
        return Step(*_split(value)), []
    turn = CHATML.parse(value)
    return Step(turn.thinking, turn.content), turn.calls


def _split(value: str) -> tuple[str, str]:
    """Split a text that :func:`_joined` wrote into the thinking and the rest."""
    if value.startswith("<think>\n") and "\n</think>\n\n" in value:
        thinking, _, rest = value.removeprefix("<think>\n").partition("\n</think>\n\n")
        return thinking, rest
    return "", value


def _joined(thinking: str, rest: str) -> str:
    return f"<think>\n{thinking}\n</think>\n\n{rest}" if thinking else rest


def write(transcript: Transcript) -> Row:
    """Write a row."""
    turns = [{"from": "human", "value": transcript.prompt}]
    for step in transcript.steps:
        if not step.calls:
            turns.append({"from": "gpt", "value": _joined(step.thinking, step.text)})
            continue
        # The layout has no place for text beside calls, so the text is appended to the thinking.
        thinking = "\n\n".join(text for text in (step.thinking, step.text) if text)
        calls: list[dict[str, Any]] = [{"name": "python", "arguments": {"code": call.code}} for call in step.calls]
        body = json.dumps(calls[0] if len(calls) == 1 else calls, ensure_ascii=False)
        turns.append({"from": "function_call", "value": _joined(thinking, body)})
        turns.append({"from": "observation", "value": BETWEEN.join(call.output for call in step.calls)})
    row = {
        "conversations": [{key: whole_characters(text) for key, text in turn.items()} for turn in turns],
        "system": whole_characters(transcript.system),
        "tools": json.dumps([TOOL_SCHEMA["function"]], ensure_ascii=False),
    }
    return with_extra(transcript, row, read)


def schema() -> Any:
    """Return the Parquet schema of written rows."""
    import pyarrow as pa

    text = pa.string()
    turn = pa.struct({"from": text, "value": text})
    return pa.schema({"conversations": pa.list_(turn), "system": text, "tools": text, "aster": text})


LLAMAFACTORY = Layout("llamafactory", "LLaMA-Factory's conversations, and the ASTER reproduction's set", read, write, schema)
