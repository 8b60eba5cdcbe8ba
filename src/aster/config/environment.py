"""The sections for the environment: how problems are posed, with which tools, and how attempts are rewarded."""

from __future__ import annotations

from typing import Any

from pydantic import model_validator

from aster.config.section import Section


class Named(Section):
    """A part that comes with ASTER, or the user's own. A recipe may give only its name instead of the whole section."""

    use: str
    """The name of a part that comes with ASTER, or ``module:name`` or ``file.py:name`` for your own."""
    arguments: dict[str, Any] = {}
    """The arguments it is called with."""

    @model_validator(mode="before")
    @classmethod
    def _name_alone(cls, data: Any) -> Any:
        return {"use": data} if isinstance(data, str) else data


class Environment(Named):
    use: str = "python_math"
    """``python_math`` (problems with a known answer, which the verifier compares with the last ``\\boxed{}``), or your own
    class as ``file.py:name`` or ``module:name``."""
    reward: str = ""
    """Your own function that computes the reward of an attempt, as ``file.py:name`` or ``module:name``. Empty: the
    environment's own reward."""
    system: str = ""
    """Text for the system turn of every prompt in synthesis, RL and evaluation, before the tools' schemas. It is used with
    every cold start, and the student is trained with it too."""


class Tool(Named):
    use: str = "python"
    """``python``, or your own function or class as ``file.py:name`` or ``module:name``."""
    name: str = ""
    """The tool's name for the model. Many published models call their Python tool ``code_interpreter``. Empty: the tool's own
    name."""
    description: str = ""
    """The tool's description for the model. Empty: the tool's own description."""
    argument: str = ""
    """The name of the argument, for tools that take one text. Empty: the tool's own name for it (``code`` for Python)."""
    aliases: list[str] = []
    """Other tool names that are accepted in a call."""


class Algorithm(Named):
    use: str = "grpo"
    """``grpo``, ``gspo``, ``cispo``, or your own class or function as ``file.py:name`` or ``module:name``. A function is a loss
    and gets GRPO's advantages."""
