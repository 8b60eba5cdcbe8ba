"""The Qwen3 dialect: ChatML turns, ``<think>``, JSON in ``<tool_call>``, results in ``<tool_response>``.

Each method returns the ids of one piece, so that pieces are joined and nothing is tokenised twice. Pieces meet at a control
token, which byte-pair merges never cross, or (after an opened ``<think>``) at the newline of the header. The pieces of one
trajectory are

    prompt_ids      system (tool schema) + user + the assistant's header          not trained
    (sampled)       the assistant's turn, ending in <|im_end|>                    trained
    tool_ids        newline, tool results as a user turn, the assistant's header  not trained

The newline after ``<|im_end|>`` belongs to the template, so it opens ``tool_ids`` and is never trained. All thinking of a
trajectory stays: there is one user message, and every assistant turn comes after it, which is where Qwen3's own template
keeps thinking too.

Two variants exist and differ in the header alone: Qwen3-*-Thinking-2507 opens ``<think>`` for the model
(``open_thinking=True``), Qwen3-1.7B leaves that to the model.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any, Protocol

TOOL_SCHEMA: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "python",
        "description": "Run Python code in a session that keeps its state between calls. The value of the last expression and "
        "everything printed come back.",
        "parameters": {
            "type": "object",
            "properties": {"code": {"type": "string", "description": "The Python code to run."}},
            "required": ["code"],
        },
    },
}
"""The one tool, in the form of the OpenAI API, as Qwen3's template takes it."""

SYSTEM_TOOLS = (
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n"
    + json.dumps(TOOL_SCHEMA, ensure_ascii=False)
    + "\n</tools>\n\nFor each function call, return a json object with function name and arguments within "
    '<tool_call></tool_call> XML tags:\n<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>'
)
"""What the template puts in the system turn for :data:`TOOL_SCHEMA`."""

# The same rendering as a chat template, for the tokenizer folders that this project writes. It always keeps thinking.
CHAT_TEMPLATE = """\
{%- set first_system = messages[0].role == 'system' -%}
{%- if tools -%}
{{- '<|im_start|>system\\n' + (messages[0].content + '\\n\\n' if first_system else '') -}}
{{- '# Tools\\n\\nYou may call one or more functions to assist with the user query.\\n\\n' -}}
{{- 'You are provided with function signatures within <tools></tools> XML tags:\\n<tools>' -}}
{%- for tool in tools -%}{{- '\\n' + (tool | tojson) -}}{%- endfor -%}
{{- '\\n</tools>\\n\\nFor each function call, return a json object with function name and arguments within ' -}}
{{- '<tool_call></tool_call> XML tags:\\n<tool_call>\\n{"name": <function-name>, "arguments": <args-json-object>}' -}}
{{- '\\n</tool_call><|im_end|>\\n' -}}
{%- elif first_system -%}
{{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' -}}
{%- endif -%}
{%- for message in messages -%}
{%- if message.role == 'user' -%}
{{- '<|im_start|>user\\n' + message.content + '<|im_end|>\\n' -}}
{%- elif message.role == 'assistant' -%}
{{- '<|im_start|>assistant\\n<think>\\n' + (message.reasoning_content or '') + '\\n</think>\\n\\n' + (message.content or '') -}}
{%- for call in message.tool_calls or [] -%}
{{- '\\n' if message.content or not loop.first else '' -}}
{{- '<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' + (call.function.arguments | tojson) -}}
{{- '}\\n</tool_call>' -}}
{%- endfor -%}
{{- '<|im_end|>\\n' -}}
{%- elif message.role == 'tool' -%}
{{- '<|im_start|>user' if loop.previtem is not defined or loop.previtem.role != 'tool' else '' -}}
{{- '\\n<tool_response>\\n' + message.content + '\\n</tool_response>' -}}
{{- '<|im_end|>\\n' if loop.nextitem is not defined or loop.nextitem.role != 'tool' else '' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n<think>\\n' -}}{%- endif -%}
"""

_CALL = re.compile(r"<tool_call>(.*?)(</tool_call>|$)", re.DOTALL)
_SURROGATE = re.compile("[\ud800-\udfff]")
_CONTROL = re.compile(r"<(\||/?(?:tool_response|tool_call|think)>)")


class Tokenizer(Protocol):
    """What the dialect needs of a ``transformers`` tokenizer."""

    def encode(self, text: str, *, add_special_tokens: bool = ...) -> list[int]: ...

    def decode(
        self, token_ids: list[int], *, skip_special_tokens: bool = ..., clean_up_tokenization_spaces: bool = ...
    ) -> str: ...

    def convert_tokens_to_ids(self, tokens: str) -> int | None: ...


@dataclass(frozen=True, slots=True)
class ParsedCall:
    """One ``<tool_call>``: its code, or why it could not be read (then ``error`` is not empty)."""

    code: str
    error: str = ""


@dataclass(frozen=True, slots=True)
class AssistantTurn:
    """The textual view of one sampled turn."""

    thinking: str
    content: str
    """The text after the thinking, without tool calls."""
    calls: list[ParsedCall] = field(default_factory=list)


class Qwen3Dialect:
    """Renders and reads the Qwen3 dialect for one tokenizer."""

    def __init__(self, tokenizer: Tokenizer, open_thinking: bool = True) -> None:
        self.tokenizer = tokenizer
        self.open_thinking = open_thinking
        end = tokenizer.convert_tokens_to_ids("<|im_end|>")
        start = tokenizer.convert_tokens_to_ids("<|im_start|>")
        if end is None or start is None or self._encode("<|im_end|>") != [end]:
            raise ValueError("this tokenizer has no <|im_start|> and <|im_end|> tokens; the qwen3 dialect needs them")
        self.end_id = end
        self.stop_token_ids = [end]
        self._header = "<|im_start|>assistant\n" + ("<think>\n" if open_thinking else "")

    def _encode(self, text: str) -> list[int]:
        # Half a surrogate pair, which JSON can hold and no tokenizer takes, is no character.
        text = text if _is_unicode(text) else whole_characters(text)
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def decode(self, token_ids: list[int]) -> str:
        """Text of ids, control tokens included."""
        return self.tokenizer.decode(token_ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def prompt_ids(self, prompt: str, tools: bool = True, system: str = "") -> list[int]:
        """The opening of a trajectory, up to where the model goes on."""
        instructions = "\n\n".join(text for text in (system, SYSTEM_TOOLS if tools else "") if text)
        opening = f"<|im_start|>system\n{instructions}<|im_end|>\n" if instructions else ""
        return self._encode(f"{opening}<|im_start|>user\n{neutralize(prompt)}<|im_end|>\n{self._header}")

    def tool_ids(self, outputs: list[str]) -> list[int]:
        """What follows an assistant turn that called: its results and the next header."""
        responses = "".join(f"\n<tool_response>\n{neutralize(output)}\n</tool_response>" for output in outputs)
        return self._encode(f"\n<|im_start|>user{responses}<|im_end|>\n{self._header}")

    def turn_ids(self, thinking: str, content: str, codes: list[str]) -> list[int]:
        """An assistant turn as ids, for a teacher that writes text: what a model would have sampled after the header."""
        opening = "" if self.open_thinking else "<think>\n"
        calls = "\n".join(render_call(code) for code in codes)
        separator = "\n" if content and calls else ""
        body = f"{neutralize(thinking)}\n</think>\n\n{neutralize(content)}{separator}{calls}"
        return self._encode(f"{opening}{body}<|im_end|>")

    def parse(self, token_ids: list[int]) -> AssistantTurn:
        """Read a sampled turn. Never raises: what cannot be read becomes a ParsedCall with an error."""
        text = self.decode([token for token in token_ids if token != self.end_id])
        thinking, closed, rest = text.partition("</think>")
        if not closed:
            # A model that was not trained to think writes its content at once; one whose thinking was opened never closed it.
            thinking, rest = (text, "") if self.open_thinking or text.lstrip().startswith("<think>") else ("", text)
        thinking = thinking.strip().removeprefix("<think>").strip()
        return AssistantTurn(thinking, *parse_calls(rest))


def parse_calls(text: str) -> tuple[str, list[ParsedCall]]:
    """A text without its ``<tool_call>``s, and these."""
    calls = [_parse_call(match[1], closed=bool(match[2])) for match in _CALL.finditer(text)]
    return _CALL.sub("", text).strip(), calls


def read_arguments(text: str) -> ParsedCall:
    """A call's arguments as a server or model gives them: JSON, an object with ``code``.

    Plain text is taken for the code itself: models trained with a Python tool of their own (GPT-OSS) write so. What cannot be
    read keeps its text, with an error."""
    if not text.lstrip().startswith(("{", "[", '"')):
        return ParsedCall(text) if text.strip() else ParsedCall("", "the arguments are empty")
    try:
        arguments = json.loads(text)
    except (ValueError, RecursionError) as error:
        return ParsedCall(text, f"the arguments are not valid JSON: {error}")
    code = arguments.get("code") if isinstance(arguments, dict) else None
    if not isinstance(code, str):
        return ParsedCall(text, 'the arguments must be an object with the text field "code"')
    return ParsedCall(whole_characters(code))


def render_call(code: str) -> str:
    """One tool call as the template writes it. Control strings in the code are escaped, as JSON can, so none is lost."""
    arguments = _CONTROL.sub(r"\\u003c\1", json.dumps({"code": code}, ensure_ascii=False))
    return f'<tool_call>\n{{"name": "python", "arguments": {arguments}}}\n</tool_call>'


def neutralize(text: str) -> str:
    """Break the control strings in text from outside (a prompt, a tool's output), so that it cannot end its own turn."""
    return _CONTROL.sub(r"< \1", text)


def whole_characters(text: str) -> str:
    """The text with U+FFFD in the place of each lone surrogate."""
    return _SURROGATE.sub("\ufffd", text)


def _parse_call(body: str, closed: bool) -> ParsedCall:
    if not closed:
        return ParsedCall("", "the tool call is not closed with </tool_call>")
    try:
        call = json.loads(body)
    except (ValueError, RecursionError) as error:
        return ParsedCall("", f"the tool call is not valid JSON: {error}")
    if not isinstance(call, dict) or call.get("name") != "python":
        return ParsedCall("", 'the tool call must be a JSON object with "name": "python"')
    arguments = call.get("arguments")
    code = arguments.get("code") if isinstance(arguments, dict) else None
    if not isinstance(code, str):
        return ParsedCall("", 'the tool call\'s "arguments" must be an object with the text field "code"')
    if not _is_unicode(code):
        return ParsedCall("", "the code holds half of a surrogate pair, which is no character")
    return ParsedCall(code)


def _is_unicode(text: str) -> bool:
    """JSON can escape half a surrogate pair, which no UTF-8 file can hold."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
