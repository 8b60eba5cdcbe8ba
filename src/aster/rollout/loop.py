"""One trajectory: sample a turn, run its calls, append their results, until the policy answers or a budget ends; then score it.

Whoever samples tokens comes through here, in synthesis, RL and evaluation; a server that gives text alone has a loop of its own
(:mod:`aster.teacher.chat`). The budget is checked in this order:

    before a turn   context_tokens, turns, wall_seconds (:meth:`Budget.before_turn`)
    after it        context_tokens or turn_tokens (the turn was cut), then tool_calls, call by call

In an environment without tools the prompt has no schema, and the first turn that ends is the answer.

A trajectory never holds more than ``context_tokens``, unless its prompt does: a tool result that would leave no room for a next
token is not appended. A call that cannot be parsed gets an error as its result, and the loop goes on. What fails is recorded on
the trajectory. The loop raises only cancellation, EngineLost (then no trajectory can be trained on) and UserError (then other
attempts would fail in the same way until the user changes something).
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from aster.chat import Qwen3Dialect
from aster.engines import Completion, EngineLost, Sampler, SamplingParams
from aster.environments.base import Environment, opening, record_score
from aster.environments.tools import Toolbox, ToolFailure
from aster.errors import UserError
from aster.transcript import Step
from aster.types import Budget, Problem, StopReason, Trajectory
from aster_sandbox import SandboxFailure


@dataclass(frozen=True, slots=True)
class Decoding:
    """How turns are sampled."""

    temperature: float = 1.0
    top_p: float = 1.0


async def rollout(
    problem: Problem,
    sample: int,
    seed: int,
    *,
    sequence: str,
    sampler: Sampler,
    dialect: Qwen3Dialect,
    environment: Environment,
    budget: Budget,
    decoding: Decoding,
) -> Trajectory:
    """One attempt at a problem, scored. ``sequence`` names it to the sampler, which must know it (``sampler.open``);
    ``dialect`` has the environment's tools."""
    trajectory = Trajectory(problem.id, sample, seed)
    toolbox = Toolbox(environment.tools, problem, seed)
    loop = _Loop(problem, trajectory, sequence, sampler, dialect, environment, toolbox, budget, decoding)
    began = time.monotonic()
    try:
        trajectory.stop_reason = await loop.run(began)
    except SandboxFailure as error:
        trajectory.stop_reason, trajectory.error = StopReason.SANDBOX_ERROR, str(error)
    except ToolFailure as error:
        trajectory.stop_reason, trajectory.error = StopReason.ENVIRONMENT_ERROR, str(error)
    except (EngineLost, UserError):
        raise
    except Exception as error:  # noqa: BLE001 - whatever the engine raises is this trajectory's recorded fault
        trajectory.stop_reason, trajectory.error = StopReason.ENGINE_ERROR, f"{type(error).__name__}: {error}"
    finally:
        sampler.release(sequence)
        await toolbox.close()
    trajectory.seconds = round(time.monotonic() - began, 4)
    await record_score(environment, problem, loop.steps, trajectory)
    return trajectory


@dataclass(slots=True)
class _Loop:
    problem: Problem
    trajectory: Trajectory
    sequence: str
    sampler: Sampler
    dialect: Qwen3Dialect
    environment: Environment
    toolbox: Toolbox
    budget: Budget
    decoding: Decoding
    steps: list[Step] = field(default_factory=list)
    """The turns as text, for the environment."""

    async def run(self, began: float) -> StopReason:
        trajectory, budget = self.trajectory, self.budget
        prompt, system = opening(self.environment, self.problem)
        trajectory.append("prompt", self.dialect.prompt_ids(prompt, system=system))
        while True:
            room = budget.context_tokens - len(trajectory.token_ids)
            ended = budget.before_turn(room, len(self.steps), time.monotonic() - began)
            if ended is not None:
                return ended
            completion = await self.sample(min(room, budget.turn_tokens))
            turn = trajectory.append("assistant", completion.token_ids, completion.logprobs)
            parsed = self.dialect.parse(completion.token_ids)
            # The step shares its list of calls with the turn.
            self.steps.append(Step(parsed.thinking, parsed.content, turn.calls, len(completion.token_ids)))
            if not completion.stopped:
                return StopReason.TOKEN_BUDGET
            if not parsed.calls or not self.toolbox.tools:
                return StopReason.ANSWERED
            for call in parsed.calls:
                if len(trajectory.calls) >= budget.tool_calls:
                    return StopReason.CALL_BUDGET
                turn.calls.append(await self.toolbox.run(call))
            response = self.dialect.tool_ids([call.output for call in turn.calls])
            if len(trajectory.token_ids) + len(response) >= budget.context_tokens:
                return StopReason.TOKEN_BUDGET
            trajectory.append("tool", response)

    async def sample(self, max_tokens: int) -> Completion:
        params = SamplingParams(
            max_tokens=max_tokens,
            temperature=self.decoding.temperature,
            top_p=self.decoding.top_p,
            seed=self.trajectory.seed,
            stop_token_ids=tuple(self.dialect.stop_token_ids),
            sequence=self.sequence,
        )
        return await self.sampler.sample(list(self.trajectory.token_ids), params)
