"""What comes of a cell."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class CellStatus(enum.StrEnum):
    """How one cell ended."""

    OK = "ok"
    ERROR = "error"
    """The code raised."""
    TIMEOUT = "timeout"
    """It ran into the time limit."""
    CRASHED = "crashed"
    """The interpreter died under the code."""


@dataclass(frozen=True, slots=True)
class CellResult:
    """One cell and what came of it."""

    code: str
    """As it was given."""
    status: CellStatus
    output: str
    """What a reader of the session sees: what was printed, the echo of the last expression, a traceback, notes in brackets."""
    seconds: float
    """Wall clock, from the call of ``run`` to its return."""
