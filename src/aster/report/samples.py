"""Choose trajectories for the report and split them into the blocks that the page shows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from aster.data.text import split_assistant, turn_texts
from aster.errors import UserError
from aster.run import RunFolder
from aster.types import Trajectory


@dataclass(frozen=True)
class Block:
    """A piece of a turn. ``kind`` is prompt, thinking, text, call, code or output; ``note`` is shown beside it."""

    kind: str
    text: str
    note: str = ""


@dataclass(frozen=True)
class TurnView:
    """One turn as the page shows it."""

    number: int
    role: str
    tokens: int
    blocks: list[Block]


@dataclass(frozen=True)
class Sample:
    """One trajectory as the page shows it."""

    source: str
    trajectory: Trajectory
    expected: str
    turns: list[TurnView] = field(default_factory=list)


def pick(trajectories: Iterable[Trajectory], count: int, into: list[Trajectory]) -> Iterator[Trajectory]:
    """Yield all trajectories, and add the first ``count`` solved and the first ``count`` failed ones to ``into``.

    At most one solved and one failed trajectory of each problem is added, because samples of one problem are similar. ``into``
    is complete, with the solved ones first, when all trajectories have been read.
    """
    left = {True: count, False: count}
    seen: set[tuple[bool, str]] = set()
    for trajectory in trajectories:
        solved = trajectory.reward > 0
        if left[solved] and (solved, trajectory.problem_id) not in seen:
            seen.add((solved, trajectory.problem_id))
            left[solved] -= 1
            into.append(trajectory)
        yield trajectory
    into.sort(key=lambda trajectory: trajectory.reward <= 0)


def sample_view(run: RunFolder, source: str, trajectory: Trajectory, problem: dict[str, str]) -> Sample:
    """Split a trajectory into turns and blocks. If the run folder has no tokenizer, only calls and outputs have text."""
    try:
        texts: list[str] | None = turn_texts(run, trajectory)
    except UserError:
        texts = None
    turns = []
    before: list[Block] = []  # outputs of the previous assistant turn, shown in the tool turn
    for number, turn in enumerate(trajectory.turns):
        text = texts[number] if texts is not None else ""
        if turn.role == "assistant":
            blocks = [Block(kind, part) for kind, part in split_assistant(text) if kind != "call" or not turn.calls]
            blocks += [Block("code", call.code, "call") for call in turn.calls]
            before = [Block("output", call.output, f"{call.status.value}, {call.seconds:.3f} s") for call in turn.calls]
        elif turn.role == "tool":
            blocks = before or [Block("output", text)]
            before = []
        else:
            blocks = [Block("prompt", text or problem.get("prompt", ""))]
        turns.append(TurnView(number, turn.role, turn.end - turn.start, [block for block in blocks if block.text]))
    if before:  # the trajectory ended before its tool turn was appended
        turns.append(TurnView(len(turns), "tool", 0, before))
    return Sample(source, trajectory, problem.get("answer", "unknown"), turns)
