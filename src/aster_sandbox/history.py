"""What a session did, so that it can be done again, and what is said about what could not."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from aster_sandbox.protocol import Kind, Reply, Request
from aster_sandbox.types import CellStatus

KEPT = "the variables and imports of earlier cells are kept"
LOST = "the variables and imports of earlier cells are lost"


@dataclass(slots=True)
class Step:
    """One thing that changed the session's state: a cell that came to an end, a new seed, a file that was put there."""

    request: Request
    kind: Kind
    """How it ended."""
    seconds: float = 0.0
    line: int = 0
    """Of an interrupted cell: where the first statement begins that had not ended when the interrupt came."""
    repeatable: bool = True
    """Whether replay may do it again: it has not ended a process that replayed it."""

    @classmethod
    def ended(cls, request: Request, reply: Reply, seconds: float) -> Step:
        """What has just ended. Of an interrupted cell, replay runs the statements that had ended before: nobody can interrupt
        it again at the same place."""
        if reply.kind is Kind.INTERRUPTED:
            return cls(request._replace(limit=reply.finished), reply.kind, seconds, reply.line)
        return cls(request, reply.kind, seconds)

    @property
    def expected(self) -> Kind:
        """How it must end in replay."""
        return Kind.OK if self.kind is Kind.INTERRUPTED else self.kind

    def name(self, whole: bool) -> str:
        """The cell's number, and what of it is missing, for the model to read; of a file, its path."""
        if self.request.op == "write":
            return f"the file {self.request.data.partition(bytes(1))[0].decode('utf-8', 'replace')!r}"
        part = "" if whole or self.line <= 1 else f" (from line {self.line} on)"
        return f"{self.request.number}{part}"


@dataclass(slots=True)
class History:
    """A session's steps, and which of them its present process may not have the effects of."""

    steps: list[Step] = field(default_factory=list)
    missing: set[int] = field(default_factory=set)
    """Places in ``steps``."""
    interrupted_here: set[int] = field(default_factory=set)
    """Places of interrupted cells that ran in the present process, which has all that they did."""

    def add(self, step: Step) -> None:
        """One more, in the present process."""
        if step.kind is Kind.INTERRUPTED:
            self.interrupted_here.add(len(self.steps))
        self.steps.append(step)

    def copy(self) -> History:
        """For a fork."""
        return History([replace(step) for step in self.steps])

    @property
    def seconds(self) -> float:
        """What replay takes, about."""
        return sum(step.seconds for step in self.steps)

    @property
    def exact(self) -> bool:
        """Whether replay runs all that was run. (Clocks, ids and generators that nobody seeded give other values then.)"""
        return not self.missing and all(step.repeatable and step.kind is not Kind.INTERRUPTED for step in self.steps)

    def begin_replay(self) -> None:
        """A fresh process has nothing yet."""
        self.missing.clear()
        self.interrupted_here.clear()

    def state(self) -> str:
        """What became of the state, for the model to read."""
        lost = [
            step.name(whole=place in self.missing)
            for place, step in enumerate(self.steps)
            if place in self.missing or (step.kind is Kind.INTERRUPTED and place not in self.interrupted_here)
        ]
        return f"{KEPT}, except for what these cells changed: {', '.join(lost)}" if lost else KEPT

    @property
    def all_missing(self) -> bool:
        """Whether nothing could be brought back."""
        return bool(self.steps) and len(self.missing) == len(self.steps)


STATUS = {Kind.OK: CellStatus.OK, Kind.ERROR: CellStatus.ERROR, Kind.INTERRUPTED: CellStatus.TIMEOUT}
"""What a cell's user sees of an answer."""
