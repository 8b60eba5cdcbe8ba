"""What a model is told of its tools, and how its calls are read, whatever the dialect.

A tool is announced by a name, a description and the JSON schema of its arguments (:class:`ToolSchema`). Name, description and
the argument's name are settings of a recipe: published models differ in them, and many call their Python ``code_interpreter``.
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
"""What JSON's types are in Python. ``true`` is no number, although Python's bool is an int."""


@dataclass(frozen=True, slots=True)
class ParsedCall:
    """One call as a model wrote it, or why it could not be read (then ``error`` is not empty)."""

    code: str
    """The text of the tool's only argument: for the Python tool, its code. Empty for tools with other arguments."""
    error: str = ""
    tool: str = ""
    """The tool's name. Empty: the first tool that takes one text."""
    arguments: dict[str, Any] | None = None
    """Of a tool with other arguments than one text."""


@dataclass(frozen=True, slots=True)
class AssistantTurn:
    """The textual view of one sampled turn."""

    thinking: str
    content: str
    """The text after the thinking, without tool calls."""
    calls: list[ParsedCall] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class ToolSchema:
    """What a model is told of one tool."""

    name: str
    description: str
    parameters: dict[str, Any]
    """JSON schema of an object: ``properties`` and ``required``."""
    aliases: tuple[str, ...] = ()
    """Other names under which a call is accepted."""

    @property
    def function(self) -> dict[str, Any]:
        """The form of the OpenAI API, as chat templates take it."""
        return {
            "type": "function",
            "function": {"name": self.name, "description": self.description, "parameters": self.parameters},
        }

    @property
    def text_argument(self) -> str | None:
        """The name of the argument, where the tool takes one text and nothing else."""
        properties = self.parameters.get("properties", {})
        if len(properties) == 1:
            ((name, schema),) = properties.items()
            if schema.get("type") == "string":
                return str(name)
        return None

    def check(self, arguments: Any) -> str:
        """What is wrong with a call's arguments; empty where they fit."""
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
        """All of them in the form of the OpenAI API."""
        return [tool.function for tool in self.tools]

    @property
    def code_tool(self) -> ToolSchema:
        """The tool that code without a name is for: the first that takes one text. ValueError where there is none."""
        found = self.find("")
        if found is None:
            raise ValueError("none of the tools takes one text, so code cannot be called for it")
        return found

    def find(self, name: object) -> ToolSchema | None:
        """The tool of a name or an alias. An empty name stands for :attr:`code_tool`."""
        if name == "":
            return next((tool for tool in self.tools if tool.text_argument is not None), None)
        return next((tool for tool in self.tools if name == tool.name or name in tool.aliases), None)

    def read(self, name: object, arguments: Any) -> ParsedCall:
        """A call by its name and parsed arguments; what does not fit is a call with an error."""
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
        """A call's arguments as the object that its tool takes."""
        if call.arguments is not None:
            return call.arguments
        tool = self.find(call.tool)
        return {(tool.text_argument if tool is not None else None) or "code": call.code}

    def _names(self) -> str:
        return " or ".join(f'"{tool.name}"' for tool in self.tools)


def python_schema(
    name: str = "python", description: str = "", argument: str = "code", aliases: Sequence[str] = ()
) -> ToolSchema:
    """The schema of the Python tool. Defaults are what the embedded base model was trained with."""
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
"""The Python tool and no other."""
NO_TOOLS = ToolSchemas(())


def is_unicode(text: str) -> bool:
    """False where a text holds half a surrogate pair, which JSON can escape and no UTF-8 file can hold."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def whole_characters(text: str) -> str:
    """The text with U+FFFD in the place of each lone surrogate."""
    return _SURROGATE.sub("\ufffd", text)
