"""The tool door: what the model may call.

A tool is a schema and, for each attempt, a session that takes calls. A plain function is a tool too (:class:`FunctionTool`):
its name, docstring and annotations are the schema. Raise :class:`ToolError` to tell the model that its call failed; any other
exception is a fault of the tool, which is recorded on the attempt and not shown to the model."""

from __future__ import annotations

import inspect
import time
import typing
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from aster.chat import ParsedCall, ToolSchema, ToolSchemas, python_schema
from aster.doors import blame, place_of
from aster.errors import UserError
from aster.types import CallStatus, Problem, ToolCall
from aster_sandbox import AnySandbox, AnySession, SandboxFailure, Settings, make_sandbox

_TYPES: dict[Any, str] = {str: "string", int: "integer", float: "number", bool: "boolean", list: "array", dict: "object"}


class ToolError(Exception):
    """What a tool raises to tell the model that a call failed, and why."""


class ToolFailure(Exception):
    """A tool's own code failed: a fault of the attempt's."""


@dataclass(frozen=True, slots=True)
class ToolResult:
    """What a call gave."""

    text: str
    """What the model sees."""
    status: CallStatus = CallStatus.OK
    seconds: float | None = None
    """What the call took; None: the time from outside."""
    code: str | None = None
    """The code that ran, where it is not the code that was written."""


class ToolSession(Protocol):
    """A tool during one attempt."""

    async def call(self, arguments: dict[str, Any]) -> ToolResult | str:
        """Take one call. ``arguments`` fit the schema."""

    async def close(self) -> None:
        """The attempt has ended."""


class Tool:
    """What a model may call. An asynchronous context manager for what its sessions share."""

    schema: ToolSchema

    async def open(self, problem: Problem, seed: int) -> ToolSession:
        """A session for one attempt, opened at its first call. ``seed`` is the attempt's."""
        raise NotImplementedError

    async def __aenter__(self) -> Tool:
        return self

    async def __aexit__(self, *error: Any) -> None:
        """Nothing is shared."""


class PythonTool(Tool):
    """Python in a session of the sandbox, which keeps its state between the calls of an attempt."""

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        sandbox: AnySandbox | None = None,
        schema: ToolSchema | None = None,
        beside_sampler: bool = False,
    ) -> None:
        """``settings``: of a sandbox that is opened with the tool. ``sandbox``: one that is open already; it stays the
        caller's. ``beside_sampler``: the model is sampled on this machine's CPU at the same time."""
        self.schema = schema or python_schema()
        self.sandbox: AnySandbox | None = sandbox
        self._settings, self._beside_sampler = settings or Settings(), beside_sampler
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> PythonTool:
        if self.sandbox is None:
            sandbox = make_sandbox(self._settings, beside_sampler=self._beside_sampler)
            self.sandbox = await self._stack.enter_async_context(sandbox)
            self._stack.callback(setattr, self, "sandbox", None)
        return self

    async def __aexit__(self, *error: Any) -> None:
        await self._stack.__aexit__(*error)

    async def open(self, problem: Problem, seed: int) -> ToolSession:
        """A session in which the problem's setup has run."""
        if self.sandbox is None:
            raise RuntimeError("the Python tool is not open; use it as a context manager")
        return _PythonSession(await self.sandbox.open(seed, problem.setup))


@dataclass(slots=True)
class _PythonSession:
    session: AnySession

    async def call(self, arguments: dict[str, Any]) -> ToolResult:
        (code,) = arguments.values()
        cell = await self.session.run(code)
        return ToolResult(cell.output, CallStatus(cell.status.value), cell.seconds, cell.code)

    async def close(self) -> None:
        await self.session.close()


class FunctionTool(Tool):
    """A function as a tool, ``async`` or not, without state between calls."""

    def __init__(self, function: Callable[..., Any]) -> None:
        """UserError where an argument has no annotation that JSON can hold."""
        self.function = function
        self.schema = schema_of(function)

    async def open(self, problem: Problem, seed: int) -> ToolSession:  # noqa: ARG002 - a function knows neither
        """The function itself."""
        return _FunctionSession(self.function)


@dataclass(slots=True)
class _FunctionSession:
    function: Callable[..., Any]

    async def call(self, arguments: dict[str, Any]) -> ToolResult | str:
        found = self.function(**arguments)
        return await found if inspect.isawaitable(found) else found

    async def close(self) -> None:
        """Nothing to close."""


def schema_of(function: Callable[..., Any]) -> ToolSchema:
    """The schema of a function: its name, its docstring, and an argument for each parameter. Parameters without a default are
    required. UserError where a parameter's annotation is none of str, int, float, bool, list, dict."""
    hints = typing.get_type_hints(function)
    properties, required = {}, []
    for name, parameter in inspect.signature(function).parameters.items():
        hint = typing.get_origin(hints.get(name)) or hints.get(name)
        if hint not in _TYPES:
            raise UserError(
                f"tools: {place_of(function)}: the argument {name} needs an annotation: str, int, float, bool, list or dict"
            )
        properties[name] = {"type": _TYPES[hint]}
        if parameter.default is inspect.Parameter.empty:
            required.append(name)
    parameters = {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
    return ToolSchema(function.__name__, inspect.getdoc(function) or function.__name__, parameters)


def renamed(
    schema: ToolSchema, *, name: str = "", description: str = "", argument: str = "", aliases: Sequence[str] = ()
) -> ToolSchema:
    """A schema with another name, description or argument's name where they are not empty. UserError where the tool takes
    more than one text and ``argument`` is given."""
    found = replace(
        schema, name=name or schema.name, description=description or schema.description, aliases=(*schema.aliases, *aliases)
    )
    if not argument:
        return found
    old = schema.text_argument
    if old is None:
        raise UserError(
            f"tools.argument: the tool {schema.name} does not take one text, so {argument} names none of its arguments"
        )
    properties = {argument: schema.parameters["properties"][old]}
    required = [argument] if old in schema.parameters.get("required", [old]) else []
    return replace(found, parameters={**schema.parameters, "properties": properties, "required": required})


def schemas_of(tools: Sequence[Tool]) -> ToolSchemas:
    """What a model is told of some tools."""
    return ToolSchemas(tuple(tool.schema for tool in tools))


@dataclass(slots=True)
class Toolbox:
    """The tools during one attempt; a tool's session is opened at the first call that reaches it."""

    tools: Sequence[Tool]
    problem: Problem
    seed: int
    _sessions: dict[str, ToolSession] = field(default_factory=dict)

    async def run(self, call: ParsedCall) -> ToolCall:
        """A call with its output; one that could not be read gets its error as output. SandboxFailure, or ToolFailure where the
        tool's own code fails."""
        if call.error:
            return not_run(call, call.error)
        schemas = schemas_of(self.tools)
        schema = schemas.find(call.tool)
        if schema is None:
            return not_run(call, f"there is no tool named {call.tool}")
        tool = next(tool for tool in self.tools if tool.schema is schema)
        began = time.monotonic()
        try:
            if schema.name not in self._sessions:
                self._sessions[schema.name] = await tool.open(self.problem, self.seed)
            found = await self._sessions[schema.name].call(schemas.arguments_of(call))
        except ToolError as error:
            found = ToolResult(f"Error: {error}", CallStatus.ERROR)
        except (SandboxFailure, UserError):
            raise
        except Exception as error:
            raise ToolFailure(f"{schema.name}: {blame(error, 'a text, or ToolError')}") from error
        result = ToolResult(found) if isinstance(found, str) else found
        if not isinstance(result, ToolResult):
            raise ToolFailure(f"{schema.name}: gave {type(found).__name__} {found!r:.80}; expected a text or a ToolResult")
        seconds = round(time.monotonic() - began, 4) if result.seconds is None else result.seconds
        code = call.code if result.code is None else result.code
        return ToolCall(code, result.status, result.text, seconds, call.tool, call.arguments)

    async def close(self) -> None:
        """Close the sessions."""
        for session in self._sessions.values():
            await session.close()


def not_run(call: ParsedCall, why: str) -> ToolCall:
    """A call that nothing ran for, with the reason as what the policy sees."""
    return ToolCall(call.code, CallStatus.MALFORMED, f"Error: {why}", 0.0, call.tool, call.arguments)
