"""Print one trajectory as text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from aster.data.sets import iterate_set
from aster.data.text import turn_texts
from aster.errors import UserError
from aster.run import RunFolder, read_trajectories
from aster.transcript import Transcript
from aster.types import ToolCall, Trajectory

if TYPE_CHECKING:
    from aster.evaluation.folder import EvaluationFolder


def show(run: RunFolder | EvaluationFolder, stage: str, name: str | None = None, index: int = 0) -> str:
    """Return one trajectory of a stage, turn by turn.

    ``name`` is the file of the stage (default: the last one), ``index`` the trajectory's index in the file, from 0. Raises
    UserError if there is no such trajectory.
    """
    folder = run.trajectory_file(stage, "any").parent
    names = sorted(path.name.removesuffix(".jsonl.gz") for path in folder.glob("*.jsonl.gz"))
    if not names:
        raise UserError(f"{folder}: no trajectories; check that {stage!r} is a stage of this run and that it has run")
    if name is None:
        name = names[-1]
    elif name not in names:
        raise UserError(f"{folder}: no trajectories named {name!r}; the names are {names[0]} to {names[-1]}")
    path = run.trajectory_file(stage, name)
    texts = not isinstance(run, RunFolder) and run.settings.kind == "chat"
    found: Sequence[Trajectory | Transcript] = list(iterate_set(path)) if texts else read_trajectories(path)
    if index >= len(found):
        raise UserError(f"--index {index}: {stage}/{name} has {len(found)} trajectories, counting from 0")
    chosen, title = found[index], f"{stage}/{name} {index}"
    return _transcript(run, chosen, title) if isinstance(chosen, Transcript) else _text(run, chosen, title)


def _head(run: RunFolder | EvaluationFolder, shown: Trajectory | Transcript, title: str, tokens: str) -> list[str]:
    expected = run.problems().get(shown.problem_id, {}).get("answer", "unknown")
    lines = [
        f"{title}: problem {shown.problem_id}, sample {shown.sample}, seed {shown.seed}",
        f"reward {shown.reward or 0:g} ({shown.verdict or 'no verdict'}), "
        f"stop reason {shown.stop_reason.value if shown.stop_reason else 'none'}, "
        f"{shown.tool_calls} tool calls, {tokens}, {shown.seconds:.1f} s",
        f"answer {shown.answer!r}, expected {expected!r}",
    ]
    return [*lines, f"error: {shown.error}"] if shown.error else lines


def _transcript(run: RunFolder | EvaluationFolder, transcript: Transcript, title: str) -> str:
    written = transcript.usage.completion_tokens if transcript.usage else 0
    lines = [*_head(run, transcript, title, f"{written} tokens written"), "", "--- 0 prompt ---", transcript.prompt]
    for number, step in enumerate(transcript.steps, start=1):
        lines += ["", f"--- {number} assistant, {step.tokens if step.tokens is not None else '?'} tokens ---"]
        lines += [f"<think>\n{step.thinking}\n</think>"] if step.thinking else []
        lines += [step.text] if step.text else []
        for call in step.calls:
            lines += _call_lines(call)
    return "\n".join(lines)


def _text(run: RunFolder | EvaluationFolder, trajectory: Trajectory, title: str) -> str:
    tokens = f"{trajectory.sampled_tokens} sampled of {len(trajectory.token_ids)} tokens"
    lines = _head(run, trajectory, title, tokens)
    for number, (turn, text) in enumerate(zip(trajectory.turns, turn_texts(run, trajectory), strict=True)):
        lines += ["", f"--- {number} {turn.role}, {turn.end - turn.start} tokens ---", text.rstrip("\n")]
        for call in turn.calls:
            lines += _call_lines(call)
    return "\n".join(lines)


def _call_lines(call: ToolCall) -> list[str]:
    return [f"[call: {call.status.value}, {call.seconds:.3f} s]", *_indent(call.code), "[output]", *_indent(call.output)]


def _indent(text: str) -> list[str]:
    return ["    " + line for line in text.rstrip("\n").split("\n")]
