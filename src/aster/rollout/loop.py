"""The one loop: generate, parse, run the tool, append, until the policy answers or a budget ends.

Whoever samples tokens comes through here, in synthesis, RL and evaluation; a server that gives text alone has a loop of its own
(:mod:`aster.teacher.chat`). The budget is checked in this order:

    before a turn   context_tokens, turns, wall_seconds (:meth:`Budget.before_turn`)
    after it        context_tokens or turn_tokens (the turn was cut), then tool_calls, call by call

Without a sandbox there is no tool: the prompt has no schema of it, and the first turn that ends is the answer.

A trajectory never holds more than ``context_tokens``, unless its prompt alone does: a tool result that would leave no room
for a next token is not appended. A call that cannot be parsed gets an error as its result, and the loop goes on. What fails
is recorded on the trajectory; the loop raises nothing but cancellation, EngineLost (then no trajectory can be trained on) and
UserError (then the user must mend something first: other attempts would fail alike).
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from aster.chat import AssistantTurn, Qwen3Dialect
from aster.engines import Completion, EngineLost, Sampler, SamplingParams
from aster.errors import UserError
from aster.grading import grade_final
from aster.rollout.tool import PythonTool
from aster.types import Budget, Problem, StopReason, Trajectory
from aster_sandbox import AnySandbox, SandboxFailure


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
    sandbox: AnySandbox | None,
    budget: Budget,
    decoding: Decoding,
    system: str = "",
    prefix: str = "",
) -> Trajectory:
    """One attempt at a problem, graded. ``sequence`` names it to the sampler, which must know it (``sampler.open``); ``system``
    is a text for the system turn, before the tool's schema, ``prefix`` one before the problem. Without a ``sandbox`` the policy
    has no tool."""
    trajectory = Trajectory(problem.id, sample, seed)
    tool = PythonTool(sandbox, seed, problem.setup) if sandbox is not None else None
    attempt = _Attempt(problem, trajectory, sequence, sampler, dialect, tool, budget, decoding, system, prefix)
    began = time.monotonic()
    try:
        trajectory.stop_reason = await attempt.run(began)
    except SandboxFailure as error:
        trajectory.stop_reason, trajectory.error = StopReason.SANDBOX_ERROR, str(error)
    except (EngineLost, UserError):
        raise
    except Exception as error:  # noqa: BLE001 - whatever the engine raises is this trajectory's recorded fault
        trajectory.stop_reason, trajectory.error = StopReason.ENGINE_ERROR, f"{type(error).__name__}: {error}"
    finally:
        sampler.release(sequence)
        if tool is not None:
            await tool.close()
    trajectory.seconds = round(time.monotonic() - began, 4)
    grade = await grade_final(attempt.final.content if attempt.final else None, trajectory.stop_reason, problem.answer)
    trajectory.answer, trajectory.verdict = grade.answer, grade.verdict.reason
    trajectory.reward = float(grade.verdict.correct)
    return trajectory


@dataclass(slots=True)
class _Attempt:
    problem: Problem
    trajectory: Trajectory
    sequence: str
    sampler: Sampler
    dialect: Qwen3Dialect
    tool: PythonTool | None
    budget: Budget
    decoding: Decoding
    system: str = ""
    prefix: str = ""
    final: AssistantTurn | None = None

    async def run(self, began: float) -> StopReason:
        trajectory, budget = self.trajectory, self.budget
        prompt = self.prefix + self.problem.prompt
        trajectory.append("prompt", self.dialect.prompt_ids(prompt, tools=self.tool is not None, system=self.system))
        turns = 0
        while True:
            room = budget.context_tokens - len(trajectory.token_ids)
            ended = budget.before_turn(room, turns, time.monotonic() - began)
            if ended is not None:
                return ended
            turns += 1
            completion = await self.sample(min(room, budget.turn_tokens))
            turn = trajectory.append("assistant", completion.token_ids, completion.logprobs)
            if not completion.stopped:
                return StopReason.TOKEN_BUDGET
            parsed = self.dialect.parse(completion.token_ids)
            if not parsed.calls or self.tool is None:
                self.final = parsed
                return StopReason.ANSWERED
            for call in parsed.calls:
                if len(trajectory.calls) >= budget.tool_calls:
                    return StopReason.CALL_BUDGET
                turn.calls.append(await self.tool.run(call))
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
