"""The result of a cell."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class CellStatus(enum.StrEnum):
    """How a cell ended."""

    OK = "ok"
    ERROR = "error"
    """The code raised."""
    TIMEOUT = "timeout"
    """It reached the time limit."""
    CRASHED = "crashed"
    """The interpreter process ended while the cell ran."""


@dataclass(frozen=True, slots=True)
class CellResult:
    """A cell and its result."""

    code: str
    """The code as it was passed to ``run``."""
    status: CellStatus
    output: str
    """What the cell printed, the value of its last expression or a traceback, and the sandbox's notes in brackets."""
    seconds: float
    """Wall-clock time of ``run``, in seconds."""
