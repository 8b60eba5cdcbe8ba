"""A session's history, for replay: how it was opened, its steps, and which of them could not be repeated."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from aster_sandbox.interface import check_environment
from aster_sandbox.protocol import Kind, Reply, Request
from aster_sandbox.types import CellStatus

KEPT = "the variables and imports of earlier cells are kept"
LOST = "the variables and imports of earlier cells are lost"


class Origin:
    """The seed, setup and environment of a session, as the first request to each of its processes."""

    def __init__(self, seed: int, setup: str, environment: Mapping[str, str] | None) -> None:
        """Raises SettingsError for an invalid environment."""
        check_environment(environment or {})
        self.request = Request(
            "start", data=json.dumps({"seed": seed, "setup": setup, "environment": dict(environment or {})}).encode("ascii")
        )


@dataclass(slots=True)
class Step:
    """One thing that changed the session's state: a cell, a new seed or an uploaded file."""

    request: Request
    kind: Kind
    """How it ended."""
    seconds: float = 0.0
    line: int = 0
    """For an interrupted cell: the line of the first statement that had not ended when the interrupt came."""
    repeatable: bool = True
    """Whether replay may run it again: False once it has ended a process that replayed it."""

    @classmethod
    def ended(cls, request: Request, reply: Reply, seconds: float) -> Step:
        """The step of a request that has ended. Replay runs an interrupted cell only up to the statement that was interrupted,
        because it cannot be interrupted again at the same point."""
        if reply.kind is Kind.INTERRUPTED:
            return cls(request._replace(limit=reply.finished), reply.kind, seconds, reply.line)
        return cls(request, reply.kind, seconds)

    @property
    def expected(self) -> Kind:
        """The kind of reply that it must give in replay."""
        return Kind.OK if self.kind is Kind.INTERRUPTED else self.kind

    def name(self, whole: bool) -> str:
        """The cell's number, with the line from which it is missing unless the ``whole`` cell is; for a file, its path. In the
        words of a cell's output."""
        if self.request.op == "write":
            return f"the file {self.request.data.partition(bytes(1))[0].decode('utf-8', 'replace')!r}"
        part = "" if whole or self.line <= 1 else f" (from line {self.line} on)"
        return f"{self.request.number}{part}"


@dataclass(slots=True)
class History:
    """A session's steps, and which of their effects are missing in its current process."""

    steps: list[Step] = field(default_factory=list)
    missing: set[int] = field(default_factory=set)
    """Indices of steps whose effects are missing."""
    interrupted_here: set[int] = field(default_factory=set)
    """Indices of interrupted cells that ran in the current process, so that all their effects are there."""

    def add(self, step: Step) -> None:
        """Add a step that ran in the current process."""
        if step.kind is Kind.INTERRUPTED:
            self.interrupted_here.add(len(self.steps))
        self.steps.append(step)

    def copy(self) -> History:
        """A copy for a fork, whose process has no effects yet."""
        return History([replace(step) for step in self.steps])

    @property
    def seconds(self) -> float:
        """The estimated time of a replay, in seconds."""
        return sum(step.seconds for step in self.steps)

    @property
    def exact(self) -> bool:
        """Whether replay repeats all code that ran. (Values from clocks, ids and unseeded generators still differ.)"""
        return not self.missing and all(step.repeatable and step.kind is not Kind.INTERRUPTED for step in self.steps)

    def begin_replay(self) -> None:
        """Start over with a new process."""
        self.missing.clear()
        self.interrupted_here.clear()

    def state(self) -> str:
        """What became of the state, in the words of a cell's output."""
        lost = [
            step.name(whole=place in self.missing)
            for place, step in enumerate(self.steps)
            if place in self.missing or (step.kind is Kind.INTERRUPTED and place not in self.interrupted_here)
        ]
        return f"{KEPT}, except for what these cells changed: {', '.join(lost)}" if lost else KEPT

    @property
    def all_missing(self) -> bool:
        """Whether the effects of every step are missing."""
        return bool(self.steps) and len(self.missing) == len(self.steps)


STATUS = {Kind.OK: CellStatus.OK, Kind.ERROR: CellStatus.ERROR, Kind.INTERRUPTED: CellStatus.TIMEOUT}
"""The status of a cell by the kind of its reply."""
