"""From a recipe's sections to an environment."""

from __future__ import annotations

import inspect
from collections.abc import Sequence

from aster.config import Environment as EnvironmentSection
from aster.config import ForceTool, Sandbox
from aster.config import Tool as ToolSection
from aster.doors import build, load
from aster.environments.base import Environment
from aster.environments.tools import FunctionTool, PythonTool, Tool, renamed
from aster.errors import UserError

ENVIRONMENTS = {"python_math": "aster.environments.python_math:PythonMath"}
"""The environments that come with ASTER."""
TOOLS = {"python": "aster.environments.tools:PythonTool"}
"""The tools that come with ASTER."""


def make_environment(
    section: EnvironmentSection,
    tools: Sequence[ToolSection],
    sandbox: Sandbox,
    demand: ForceTool | None = None,
    *,
    beside_sampler: bool = False,
) -> Environment:
    """The environment that a recipe describes, to be opened with ``async with``.

    ``demand``: texts that demand the tool, of the cold start ``zero_force_tool``. ``beside_sampler``: the model is sampled on
    this machine's CPU at the same time. UserError where something is not what its door expects.
    """
    demand = demand or ForceTool(system="", prompt="")
    target = load(section.use, ENVIRONMENTS, "environment.use")
    if not (inspect.isclass(target) and issubclass(target, Environment)):
        raise UserError(
            f"environment.use: {section.use} is no class that derives from aster.environments.Environment; a function that "
            "scores goes into environment.reward"
        )
    found: Environment = build(target, section.arguments, "environment")
    found.tools = [*found.tools, *(_tool(each, index, sandbox, beside_sampler) for index, each in enumerate(tools))]
    names = [name for tool in found.tools for name in (tool.schema.name, *tool.schema.aliases)]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"tools: two tools go by the name {twice}; give one of them another name")
    found.system = "\n\n".join(text for text in (found.system, section.system, demand.system) if text)
    found.prefix = demand.prompt + found.prefix
    if section.reward:
        reward = load(section.reward, {}, "environment.reward")
        if not callable(reward):
            raise UserError(
                f"environment.reward: {section.reward} is no function; expected reward(attempt) -> a number or a Score"
            )
        found.reward = reward
    return found


def _tool(section: ToolSection, index: int, sandbox: Sandbox, beside_sampler: bool) -> Tool:
    field = f"tools.{index}"
    if section.use == "python":
        if section.arguments:
            raise UserError(f"{field}.arguments: the Python tool takes none; the section sandbox has its settings")
        tool: Tool = PythonTool(sandbox, beside_sampler=beside_sampler)
    else:
        target = load(section.use, TOOLS, f"{field}.use")
        if inspect.isclass(target):
            tool = build(target, section.arguments, field)
        elif section.arguments:
            raise UserError(f"{field}.arguments: {section.use} is a function, which the model calls; a class takes arguments")
        else:
            tool = FunctionTool(target)
        if not isinstance(tool, Tool):
            raise UserError(f"{field}.use: {section.use} is neither a function nor a class that derives from Tool")
    tool.schema = renamed(
        tool.schema,
        name=section.name,
        description=section.description,
        argument=section.argument,
        aliases=section.aliases,
    )
    return tool
