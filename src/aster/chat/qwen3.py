"""The Qwen3 dialect: ChatML turns, ``<think>``, JSON in ``<tool_call>``, results in ``<tool_response>``.

Each method returns the token ids of one piece of a dialogue. Pieces are joined as ids, so nothing is tokenized twice. This
gives the ids of the whole text, because pieces meet at a control token, which byte-pair merges never cross, or (after an opened
``<think>``) at the newline of the header. The pieces of one trajectory are

    prompt_ids      system (tool schema) + user + the assistant's header          not trained
    (sampled)       the assistant's turn, ending in <|im_end|>                    trained
    tool_ids        newline, tool results as a user turn, the assistant's header  not trained

The newline after ``<|im_end|>`` belongs to the template, so it is the first token of ``tool_ids`` and is never trained. No
thinking is removed: Qwen3's own template keeps the thinking of all turns after the last user message, and here every assistant
turn comes after the only one.

There are two variants, which differ only in the assistant's header: Qwen3-*-Thinking-2507 opens ``<think>`` for the model
(``open_thinking=True``); with Qwen3-1.7B the model opens it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, Protocol

from aster.chat.tools import PYTHON, AssistantTurn, ParsedCall, ToolSchemas, is_unicode, whole_characters

TOOL_SCHEMA: dict[str, Any] = PYTHON.functions[0]
"""The Python tool in the form of the OpenAI API, which Qwen3's template expects."""


def system_tools(tools: ToolSchemas) -> str:
    """Return the text that the template puts into the system turn for the tools; empty without tools."""
    if not tools:
        return ""
    listed = "".join(f"\n{json.dumps(function, ensure_ascii=False)}" for function in tools.functions)
    return (
        "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
        f"You are provided with function signatures within <tools></tools> XML tags:\n<tools>{listed}\n</tools>\n\n"
        "For each function call, return a json object with function name and arguments within "
        "<tool_call></tool_call> XML tags:\n<tool_call>\n"
        '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>'
    )


SYSTEM_TOOLS = system_tools(PYTHON)
"""The text of the system turn for :data:`TOOL_SCHEMA`."""

# The same rendering as a chat template, for the tokenizer folders that this project writes. It keeps the thinking of all turns.
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
_CONTROL = re.compile(r"<(\||/?(?:tool_response|tool_call|think)>)")


class Tokenizer(Protocol):
    """The methods of a ``transformers`` tokenizer that the dialect uses."""

    def encode(self, text: str, *, add_special_tokens: bool = ...) -> list[int]: ...

    def decode(
        self, token_ids: list[int], *, skip_special_tokens: bool = ..., clean_up_tokenization_spaces: bool = ...
    ) -> str: ...

    def convert_tokens_to_ids(self, tokens: str) -> int | None: ...


class Qwen3Dialect:
    """Renders and parses the Qwen3 dialect with one tokenizer and one choice of tools.

    ``open_thinking``: the assistant's header opens ``<think>``. Raises ValueError if the tokenizer has no ChatML tokens.
    """

    def __init__(self, tokenizer: Tokenizer, open_thinking: bool = True, tools: ToolSchemas = PYTHON) -> None:
        self.tokenizer = tokenizer
        self.tools = tools
        self.open_thinking = open_thinking
        end = tokenizer.convert_tokens_to_ids("<|im_end|>")
        start = tokenizer.convert_tokens_to_ids("<|im_start|>")
        if end is None or start is None or self._encode("<|im_end|>") != [end]:
            raise ValueError("this tokenizer has no <|im_start|> and <|im_end|> tokens; the qwen3 dialect needs them")
        self.end_id = end
        self.stop_token_ids = [end]
        self._header = "<|im_start|>assistant\n" + ("<think>\n" if open_thinking else "")

    def _encode(self, text: str) -> list[int]:
        # JSON can hold half a surrogate pair, but a tokenizer cannot encode it.
        text = text if is_unicode(text) else whole_characters(text)
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def with_tools(self, tools: ToolSchemas) -> Qwen3Dialect:
        """Return the same dialect with other tools."""
        return Qwen3Dialect(self.tokenizer, self.open_thinking, tools)

    def decode(self, token_ids: list[int]) -> str:
        """Decode ids, control tokens included."""
        return self.tokenizer.decode(token_ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def prompt_ids(self, prompt: str, tools: bool = True, system: str = "") -> list[int]:
        """Return the first piece of a trajectory: system text, tool schemas, prompt, and the assistant's header.

        ``tools`` includes the tool schemas; ``system`` is text before them. Control strings in ``prompt`` are broken up.
        """
        instructions = "\n\n".join(text for text in (system, system_tools(self.tools) if tools else "") if text)
        opening = f"<|im_start|>system\n{instructions}<|im_end|>\n" if instructions else ""
        return self._encode(f"{opening}<|im_start|>user\n{neutralize(prompt)}<|im_end|>\n{self._header}")

    def tool_ids(self, outputs: list[str]) -> list[int]:
        """Return the piece after an assistant turn with calls: one result per call, and the assistant's next header."""
        responses = "".join(f"\n<tool_response>\n{neutralize(output)}\n</tool_response>" for output in outputs)
        return self._encode(f"\n<|im_start|>user{responses}<|im_end|>\n{self._header}")

    def turn_ids(self, thinking: str, content: str, calls: Sequence[str | ParsedCall]) -> list[int]:
        """Return an assistant turn given as text: the ids that a model would have sampled after the header.

        A call that is a string is the argument of the first tool that takes a single text.
        """
        opening = "" if self.open_thinking else "<think>\n"
        written = "\n".join(render_call(call, self.tools) for call in calls)
        separator = "\n" if content and written else ""
        body = f"{neutralize(thinking)}\n</think>\n\n{neutralize(content)}{separator}{written}"
        return self._encode(f"{opening}{body}<|im_end|>")

    def parse(self, token_ids: list[int]) -> AssistantTurn:
        """Parse a sampled turn. Never raises: a call that cannot be parsed becomes a ParsedCall with an error."""
        text = self.decode([token for token in token_ids if token != self.end_id])
        thinking, closed, rest = text.partition("</think>")
        if not closed:
            # If <think> was opened, by the header or the model, the text is unfinished thinking. Else it has no thinking.
            thinking, rest = (text, "") if self.open_thinking or text.lstrip().startswith("<think>") else ("", text)
        thinking = thinking.strip().removeprefix("<think>").strip()
        return AssistantTurn(thinking, *parse_calls(rest, self.tools))


def parse_calls(text: str, tools: ToolSchemas = PYTHON) -> tuple[str, list[ParsedCall]]:
    """Return a text without its ``<tool_call>`` blocks, and the parsed calls."""
    calls = [_parse_call(match[1], bool(match[2]), tools) for match in _CALL.finditer(text)]
    return _CALL.sub("", text).strip(), calls


def read_arguments(text: str, tools: ToolSchemas = PYTHON, name: str = "") -> ParsedCall:
    """Parse a call's arguments as a server or model gives them: a JSON object that fits the schema of the tool ``name``.

    If the tool takes a single text, plain text is taken as that text, because models with a built-in Python tool (GPT-OSS)
    write it like that. Arguments that cannot be parsed keep their text as code and have an error.
    """
    tool = tools.find(name)
    if tool is None:
        return ParsedCall(text, f"there is no tool named {name}")
    argument = tool.text_argument
    if argument is not None and not text.lstrip().startswith(("{", "[", '"')):
        return tools.read(name, {argument: text}) if text.strip() else ParsedCall("", "the arguments are empty")
    try:
        arguments = json.loads(text)
    except (ValueError, RecursionError) as error:
        return ParsedCall(text, f"the arguments are not valid JSON: {error}")
    wrong = tool.check(arguments)
    if wrong:
        return ParsedCall(text, wrong)
    if argument is not None:
        arguments[argument] = whole_characters(arguments[argument])
    return tools.read(name, arguments)


def render_call(call: str | ParsedCall, tools: ToolSchemas = PYTHON) -> str:
    """Return one tool call as the template writes it. Control strings in it are written as JSON escapes."""
    call = ParsedCall(call) if isinstance(call, str) else call
    tool = tools.find(call.tool) or tools.code_tool
    arguments = _CONTROL.sub(r"\\u003c\1", json.dumps(tools.arguments_of(call), ensure_ascii=False))
    return f'<tool_call>\n{{"name": "{tool.name}", "arguments": {arguments}}}\n</tool_call>'


def neutralize(text: str) -> str:
    """Break up control strings in a prompt or a tool's output, so that the text cannot end its own turn."""
    return _CONTROL.sub(r"< \1", text)


def _parse_call(body: str, closed: bool, tools: ToolSchemas) -> ParsedCall:
    if not closed:
        return ParsedCall("", "the tool call is not closed with </tool_call>")
    try:
        call = json.loads(body)
    except (ValueError, RecursionError) as error:
        return ParsedCall("", f"the tool call is not valid JSON: {error}")
    # A call must name its tool. An empty name, which elsewhere means the only tool, is not valid here.
    named = isinstance(call, dict) and call.get("name") != ""
    return tools.read(call.get("name") if named else None, call.get("arguments") if named else None)
