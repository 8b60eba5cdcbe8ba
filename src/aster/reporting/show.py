"""One trajectory as plain text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aster.core.errors import UserError
from aster.core.run import RunFolder, read_trajectories
from aster.core.types import ToolCall, Trajectory
from aster.reporting.text import turn_texts

if TYPE_CHECKING:
    from aster.evaluation.folder import EvaluationFolder


def show(run: RunFolder | EvaluationFolder, stage: str, name: str | None = None, index: int = 0) -> str:
    """The trajectory ``index`` of a file of a stage (by default its last), turn by turn. UserError where there is none."""
    folder = run.trajectory_file(stage, "any").parent
    names = sorted(path.name.removesuffix(".jsonl.gz") for path in folder.glob("*.jsonl.gz"))
    if not names:
        raise UserError(f"{folder}: no trajectories; is {stage!r} a stage of this run, and has it run?")
    if name is None:
        name = names[-1]
    elif name not in names:
        raise UserError(f"{folder}: no trajectories named {name!r}; there are {names[0]} to {names[-1]}")
    trajectories = read_trajectories(run.trajectory_file(stage, name))
    if index >= len(trajectories):
        raise UserError(f"--index {index}: {stage}/{name} has {len(trajectories)} trajectories, counted from 0")
    return _text(run, trajectories[index], f"{stage}/{name} {index}")


def _text(run: RunFolder | EvaluationFolder, trajectory: Trajectory, title: str) -> str:
    problem = run.problems().get(trajectory.problem_id, {})
    lines = [
        f"{title}: problem {trajectory.problem_id}, sample {trajectory.sample}, seed {trajectory.seed}",
        f"reward {trajectory.reward:g} ({trajectory.verdict or 'no verdict'}), "
        f"stop reason {trajectory.stop_reason.value if trajectory.stop_reason else 'none'}, "
        f"{trajectory.tool_calls} tool calls, {trajectory.sampled_tokens} sampled of {len(trajectory.token_ids)} tokens, "
        f"{trajectory.seconds:.1f} s",
        f"answer {trajectory.answer!r}, expected {problem.get('answer', 'unknown')!r}",
    ]
    if trajectory.error:
        lines.append(f"error: {trajectory.error}")
    for number, (turn, text) in enumerate(zip(trajectory.turns, turn_texts(run, trajectory), strict=True)):
        lines += ["", f"--- {number} {turn.role}, {turn.end - turn.start} tokens ---", text.rstrip("\n")]
        for call in turn.calls:
            lines += _call_lines(call)
    return "\n".join(lines)


def _call_lines(call: ToolCall) -> list[str]:
    return [f"[call: {call.status.value}, {call.seconds:.3f} s]", *_indent(call.code), "[output]", *_indent(call.output)]


def _indent(text: str) -> list[str]:
    return ["    " + line for line in text.rstrip("\n").split("\n")]
