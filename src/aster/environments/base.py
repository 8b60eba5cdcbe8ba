"""The environment door: what is asked, with which tools, and what an attempt is worth.

Synthesis, RL, evaluation and import all ask the one environment. To have your own, subclass :class:`Environment` and change
what differs, usually :meth:`~Environment.score`; name the class in a recipe (``environment: my_file.py:MyEnvironment``) or
hand an instance to :class:`aster.rollout.RolloutContext`. For another reward only, a function is enough
(``environment.reward``)."""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

from aster.chat import ToolSchemas
from aster.doors import blame, place_of
from aster.environments.tools import Tool, schemas_of
from aster.errors import UserError
from aster.transcript import Step, Transcript
from aster.types import FAULTS, Problem, StopReason, ToolCall, Trajectory

Message = dict[str, str]
"""``{"role": "system" | "user", "content": ...}``"""
EXPECTED_SCORE = "a number, or a Score"


class EnvironmentFailure(Exception):
    """The environment's own code failed. The attempt is recorded as a fault: it says nothing about the policy."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt at a problem, as text, for the environment to score."""

    problem: Problem
    steps: list[Step]
    """The assistant's turns in order: thinking, text, and calls with their outputs."""
    stop_reason: StopReason | None

    @property
    def final(self) -> str | None:
        """The text of the turn that answered, without its thinking; None where the attempt ended otherwise."""
        return self.steps[-1].text if self.steps and self.stop_reason is StopReason.ANSWERED else None

    @property
    def calls(self) -> list[ToolCall]:
        """All tool calls in order."""
        return [call for step in self.steps for call in step.calls]


@dataclass(frozen=True, slots=True)
class Score:
    """What an attempt is worth."""

    reward: float
    verdict: str = ""
    """How the reward came about, in words; shown with the trajectory."""
    answer: str | None = None
    """What the attempt gave as its answer; votes count these."""
    turns: list[float] | None = None
    """A reward for each assistant turn, for algorithms that give credit to turns."""


Reward = Callable[[Attempt], "float | Score | Awaitable[float | Score]"]
"""A function that scores an attempt; ``async`` where it waits for something."""


@dataclass
class Environment:
    """A task. An asynchronous context manager, which opens the tools."""

    tools: Sequence[Tool] = ()
    """What the model may call."""
    system: str = ""
    """Text for the system turn, before the tools' schemas."""
    prefix: str = ""
    """Text before every problem."""
    reward: Reward | None = None
    """In the place of :meth:`score`."""

    def prompt(self, problem: Problem) -> list[Message]:
        """The messages that open an attempt: at most one of the system, then one of the user."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, {"role": "user", "content": self.prefix + problem.prompt}]

    async def score(self, attempt: Attempt) -> float | Score:
        """What an attempt is worth. Raise where that cannot be said: the attempt is then a recorded fault, and no zero."""
        raise NotImplementedError(f"{type(self).__name__} has no score, and no reward function was given")

    async def __aenter__(self) -> Environment:
        async with AsyncExitStack() as stack:
            for tool in self.tools:
                await stack.enter_async_context(tool)
            self._opened = stack.pop_all()
        return self

    async def __aexit__(self, *error: Any) -> None:
        await self._opened.__aexit__(*error)

    @property
    def schemas(self) -> ToolSchemas:
        """What the model is told of the tools."""
        return schemas_of(self.tools)


def opening(environment: Environment, problem: Problem) -> tuple[str, str]:
    """The user's text and the system's text that open an attempt. UserError where the environment gives something else."""
    expected = "at most one system message, then one user message: {'role': ..., 'content': ...}"
    try:
        messages = environment.prompt(problem)
    except Exception as error:
        raise UserError(f"environment: {blame(error, f'prompt gives {expected}')}") from error
    fits = isinstance(messages, list) and all(isinstance(message, dict) for message in messages)
    roles, texts = ([message.get(key) for message in messages] if fits else [] for key in ("role", "content"))
    if roles not in (["user"], ["system", "user"]) or not all(isinstance(text, str) for text in texts):
        raise UserError(f"environment: {place_of(type(environment).prompt)}: gave {messages!r:.200}; expected {expected}")
    return str(texts[-1]), str(texts[0]) if len(texts) == 2 else ""


async def score(environment: Environment, attempt: Attempt) -> Score:
    """The attempt's score, checked. EnvironmentFailure where the environment's code raises, or gives no finite number.

    An attempt that failed because of an engine or a sandbox is not shown to the environment and is worth nothing."""
    if attempt.stop_reason in FAULTS:
        return Score(0.0, f"no final answer ({attempt.stop_reason})")
    scorer: Callable[[Attempt], Any] = environment.reward or environment.score
    try:
        found = scorer(attempt)
        if inspect.isawaitable(found):
            found = await found
    except UserError:
        raise
    except Exception as error:
        raise EnvironmentFailure(blame(error, f"{EXPECTED_SCORE} for an attempt")) from error
    result = found if isinstance(found, Score) else None
    if result is None and isinstance(found, int | float):
        result = Score(float(found), f"reward {found:g}")
    if result is None:
        raise EnvironmentFailure(f"{place_of(scorer)}: gave {type(found).__name__} {found!r:.80}; expected {EXPECTED_SCORE}")
    if not all(isinstance(each, int | float) and math.isfinite(each) for each in (result.reward, *(result.turns or ()))):
        raise EnvironmentFailure(f"{place_of(scorer)}: gave {found!r:.80}; expected finite numbers")
    if result.turns is not None and len(result.turns) != len(attempt.steps):
        raise EnvironmentFailure(f"{place_of(scorer)}: gave {len(result.turns)} rewards for {len(attempt.steps)} turns")
    return result


async def record_score(environment: Environment, problem: Problem, steps: list[Step], made: Trajectory | Transcript) -> None:
    """Score an attempt that has ended and write the result on it. Where the environment's own code fails, the attempt becomes a
    fault (``environment_error``). ``steps``: its turns as text."""
    try:
        found = await score(environment, Attempt(problem, steps, made.stop_reason))
    except EnvironmentFailure as error:
        made.stop_reason, made.error = StopReason.ENVIRONMENT_ERROR, str(error)
        found = Score(0.0, f"no score ({made.stop_reason})")
    made.answer, made.verdict, made.reward = found.answer, found.verdict, float(found.reward)
    if isinstance(made, Trajectory):
        made.turn_rewards = found.turns


def transcript_scorer(environment: Environment) -> Callable[[Transcript], Score]:
    """A function that scores finished attempts of other projects, outside an event loop. EnvironmentFailure as for
    :func:`score`."""

    def scorer(transcript: Transcript) -> Score:
        problem = Problem(
            transcript.problem_id,
            transcript.prompt,
            transcript.expected,
            transcript.source,
            transcript.setup,
            transcript.metadata,
        )
        return asyncio.run(score(environment, Attempt(problem, transcript.steps, transcript.stop_reason)))

    return scorer
