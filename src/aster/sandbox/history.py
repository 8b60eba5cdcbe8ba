"""What a session did, so that it can be done again, and what is said about what could not."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from aster.core.types import CallStatus
from aster.sandbox.protocol import Request

KEPT = "the variables and imports of earlier cells are kept"
LOST = "the variables and imports of earlier cells are lost"
FILES = "the files in the working directory were too large to be copied, and are as they were left"


@dataclass(slots=True)
class Step:
    """One thing that changed the session's state: a cell that came to an end, or a new seed."""

    number: int
    """The cell's."""
    code: str = ""
    status: CallStatus | None = None
    """``ok`` or ``error``; None for an interrupted cell, which nobody can interrupt again at the same place."""
    seconds: float = 0.0
    seed: int | None = None
    """Where it is no cell."""

    @property
    def repeatable(self) -> bool:
        """Whether replay may do it again."""
        return self.seed is not None or self.status is not None

    def request(self, place: int) -> Request:
        """What a runner is asked to do."""
        if self.seed is not None:
            return Request("seed", place, text=str(self.seed))
        return Request("run", place, self.number, self.code)


@dataclass(slots=True)
class History:
    """A session's steps, and which of them its present process may not have the effects of."""

    steps: list[Step] = field(default_factory=list)
    missing: set[int] = field(default_factory=set)
    """Places in ``steps``."""
    reached: int = 0
    """How far the process that recovery found had come by itself."""
    files_lost: bool = False
    """The last recovery could not bring back the working directory."""

    def copy(self) -> History:
        """For a branch."""
        return History([replace(step) for step in self.steps], {*self.missing})

    @property
    def seconds(self) -> float:
        """What replay takes, about."""
        return sum(step.seconds for step in self.steps)

    @property
    def exact(self) -> bool:
        """Whether replay leads to the present state."""
        return not self.missing and all(step.repeatable for step in self.steps)

    def begin_replay(self, place: int, files: bool) -> None:
        """A process has the effects of the first ``place`` steps, as far as they were not missing before."""
        self.reached = place
        self.missing = {step for step in self.missing if step < place}
        self.files_lost = not files

    def state(self) -> str:
        """What became of the state, for the model to read."""
        cells = ", ".join(str(self.steps[place].number) for place in sorted(self.missing))
        text = f"{KEPT}, except for what these cells changed: {cells}" if cells else KEPT
        return f"{text}; {FILES}" if self.files_lost else text
