"""Schemas of tools, and parsing of calls by these schemas, for all dialects.

The model is given a tool's name, its description and the JSON schema of its arguments (:class:`ToolSchema`). The name, the
description and the argument's name are settings of a recipe, because published models differ in them: many call their Python
tool ``code_interpreter``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

_SURROGATE = re.compile("[\ud800-\udfff]")
JSON_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
}
"""The Python types of each JSON type. ``true`` is not a number, although Python's bool is an int."""


@dataclass(frozen=True, slots=True)
class ParsedCall:
    """One call as a model wrote it, or the reason why it could not be parsed (then ``error`` is not empty)."""

    code: str
    """The text argument of a tool that takes a single text (for the Python tool, the code). Empty for other tools."""
    error: str = ""
    tool: str = ""
    """The tool's name. Empty: the first tool that takes a single text."""
    arguments: dict[str, Any] | None = None
    """The arguments of a tool that does not take a single text."""


@dataclass(frozen=True, slots=True)
class AssistantTurn:
    """The text of one assistant turn, split into its parts."""

    thinking: str
    content: str
    """The text after the thinking, without tool calls."""
    calls: list[ParsedCall] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class ToolSchema:
    """The description of one tool that the model is given."""

    name: str
    description: str
    parameters: dict[str, Any]
    """JSON schema of an object, with ``properties`` and ``required``."""
    aliases: tuple[str, ...] = ()
    """Other names that are accepted in a call."""

    @property
    def function(self) -> dict[str, Any]:
        """The schema in the form of the OpenAI API, which chat templates expect."""
        return {
            "type": "function",
            "function": {"name": self.name, "description": self.description, "parameters": self.parameters},
        }

    @property
    def text_argument(self) -> str | None:
        """The name of the argument, if the tool takes a single text and nothing else; else None."""
        properties = self.parameters.get("properties", {})
        if len(properties) == 1:
            ((name, schema),) = properties.items()
            if schema.get("type") == "string":
                return str(name)
        return None

    def check(self, arguments: Any) -> str:
        """Return what is wrong with a call's arguments; empty if they fit the schema."""
        properties = self.parameters.get("properties", {})
        required = self.parameters.get("required", list(properties))
        fits = isinstance(arguments, dict) and all(name in arguments for name in required)
        fits = fits and all(_has_type(arguments[name], properties[name]) for name in properties if name in arguments)
        if fits and not (self.parameters.get("additionalProperties", True) or arguments.keys() <= properties.keys()):
            fits = False
        if fits:
            return ""
        if self.text_argument is not None:
            return f'the tool call\'s "arguments" must be an object with the text field "{self.text_argument}"'
        fields = ", ".join(f'"{name}" ({schema.get("type", "any")})' for name, schema in properties.items())
        return f'the tool call\'s "arguments" must be an object with the fields {fields}'


def _has_type(value: Any, schema: dict[str, Any]) -> bool:
    kinds = JSON_TYPES.get(schema.get("type", ""))
    if kinds is None:
        return True
    return isinstance(value, kinds) and not (isinstance(value, bool) and bool not in kinds)


@dataclass(frozen=True, slots=True)
class ToolSchemas:
    """The tools that a model may call."""

    tools: tuple[ToolSchema, ...]

    def __bool__(self) -> bool:
        return bool(self.tools)

    @property
    def functions(self) -> list[dict[str, Any]]:
        """The schemas of all tools in the form of the OpenAI API."""
        return [tool.function for tool in self.tools]

    @property
    def code_tool(self) -> ToolSchema:
        """The tool for code without a tool's name: the first that takes a single text. Raises ValueError if there is none."""
        found = self.find("")
        if found is None:
            raise ValueError("no tool takes a single text, so there is no tool for code without a name")
        return found

    def find(self, name: object) -> ToolSchema | None:
        """Return the tool with a name or an alias, or None. An empty name means :attr:`code_tool`."""
        if name == "":
            return next((tool for tool in self.tools if tool.text_argument is not None), None)
        return next((tool for tool in self.tools if name == tool.name or name in tool.aliases), None)

    def read(self, name: object, arguments: Any) -> ParsedCall:
        """Return the call with this name and these parsed arguments. If they do not fit a tool, the call has an error."""
        tool = self.find(name)
        if tool is None:
            return ParsedCall("", f'the tool call must be a JSON object with "name": {self._names()}')
        error = tool.check(arguments)
        if error:
            return ParsedCall("", error)
        argument = tool.text_argument
        if argument is None:
            return ParsedCall("", "", tool.name, dict(arguments))
        text, name = arguments[argument], "" if tool is self.find("") else tool.name
        if not is_unicode(text):
            return ParsedCall("", f"the {argument} holds half of a surrogate pair, which is no character", name)
        return ParsedCall(text, "", name)

    def arguments_of(self, call: ParsedCall) -> dict[str, Any]:
        """Return a call's arguments as the object that its tool expects."""
        if call.arguments is not None:
            return call.arguments
        tool = self.find(call.tool)
        return {(tool.text_argument if tool is not None else None) or "code": call.code}

    def _names(self) -> str:
        return " or ".join(f'"{tool.name}"' for tool in self.tools)


def python_schema(
    name: str = "python", description: str = "", argument: str = "code", aliases: Sequence[str] = ()
) -> ToolSchema:
    """Return the schema of the Python tool. The defaults are those with which the lab's base model was trained."""
    return ToolSchema(
        name,
        description
        or "Run Python code in a session that keeps its state between calls. The value of the last expression and "
        "everything printed come back.",
        {
            "type": "object",
            "properties": {argument: {"type": "string", "description": "The Python code to run."}},
            "required": [argument],
        },
        tuple(aliases),
    )


PYTHON = ToolSchemas((python_schema(),))
"""Only the Python tool."""
NO_TOOLS = ToolSchemas(())


def is_unicode(text: str) -> bool:
    """Return whether UTF-8 can encode the text. It cannot encode half a surrogate pair, which JSON can contain."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def whole_characters(text: str) -> str:
    """Replace each lone surrogate by U+FFFD."""
    return _SURROGATE.sub("\ufffd", text)
