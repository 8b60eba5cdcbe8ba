"""Convert a transcript (text) to a trajectory (tokens) in a model's dialect, and a trajectory back to a transcript."""

from __future__ import annotations

from aster.chat import ParsedCall, Qwen3Dialect
from aster.transcript import Step, Transcript
from aster.types import Problem, Trajectory


def render(transcript: Transcript, dialect: Qwen3Dialect) -> Trajectory:
    """Return the transcript as tokens.

    The loss mask is 1 on assistant turns and 0 elsewhere. Log-probabilities are 0, because no model sampled these tokens.
    """
    trajectory = Trajectory(
        transcript.problem_id,
        transcript.sample,
        transcript.seed,
        stop_reason=transcript.stop_reason,
        answer=transcript.answer,
        reward=transcript.reward or 0.0,
        verdict=transcript.verdict,
        error=transcript.error,
        seconds=transcript.seconds,
    )
    trajectory.append("prompt", dialect.prompt_ids(transcript.prompt, system=transcript.system))
    for number, step in enumerate(transcript.steps, start=1):
        ids = dialect.turn_ids(
            step.thinking, step.text, [ParsedCall(call.code, tool=call.tool, arguments=call.arguments) for call in step.calls]
        )
        turn = trajectory.append("assistant", ids, [0.0] * len(ids))
        turn.calls = list(step.calls)
        if step.calls and number < len(transcript.steps):
            trajectory.append("tool", dialect.tool_ids([call.output for call in step.calls]))
    return trajectory


def transcribe(trajectory: Trajectory, problem: Problem, dialect: Qwen3Dialect, author: str = "") -> Transcript:
    """Return the trajectory as text. A call that could not be parsed has empty code and keeps its result."""
    steps = []
    for turn in trajectory.turns:
        if turn.role != "assistant":
            continue
        read = dialect.parse(trajectory.token_ids[turn.start : turn.end])
        steps.append(Step(read.thinking, read.content, list(turn.calls), turn.end - turn.start))
    return Transcript(
        trajectory.problem_id,
        trajectory.sample,
        problem.prompt,
        problem.answer,
        steps,
        trajectory.stop_reason,
        trajectory.answer,
        trajectory.reward,
        trajectory.verdict,
        trajectory.error,
        trajectory.seconds,
        trajectory.seed,
        setup=problem.setup,
        author=author,
        source=problem.source,
        metadata=dict(problem.metadata),
    )
