"""The sections of the environment: what is asked, with which tools, and what an attempt is worth."""

from __future__ import annotations

from typing import Any

from pydantic import model_validator

from aster.config.section import Section


class Named(Section):
    """A thing that comes with ASTER, or one of the user's. Its name may stand in the place of the whole section."""

    use: str
    """A name, ``module:name`` or ``file.py:name``."""
    arguments: dict[str, Any] = {}
    """What it is called with."""

    @model_validator(mode="before")
    @classmethod
    def _name_alone(cls, data: Any) -> Any:
        return {"use": data} if isinstance(data, str) else data


class Environment(Named):
    use: str = "python_math"
    """``python_math`` (a problem with a known answer, which the verifier compares with the last ``\\boxed{}``), or a class of
    yours."""
    reward: str = ""
    """A function of yours that says what an attempt is worth, as ``file.py:name`` or ``module:name``. Empty: the environment's
    own."""
    system: str = ""
    """Text for the system turn of every prompt, before the tools' schemas: in synthesis, RL and evaluation, whatever the cold
    start. The student learns from it too."""


class Tool(Named):
    use: str = "python"
    """``python``, or a function or class of yours."""
    name: str = ""
    """What the model knows it by; many published models call their Python ``code_interpreter``. Empty: its own name."""
    description: str = ""
    """What the model is told of it. Empty: its own description."""
    argument: str = ""
    """The name of its argument, for tools that take one text. Empty: its own (``code`` for Python)."""
    aliases: list[str] = []
    """Other names under which a call is accepted."""


class Algorithm(Named):
    use: str = "grpo"
    """``grpo``, ``gspo``, ``cispo``, a class of yours, or a function of yours: a loss that gets GRPO's advantages."""
