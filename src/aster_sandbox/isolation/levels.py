"""Isolation levels, and the plan that the supervisor makes and the zygote and the sessions carry out."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """How strongly sessions are isolated; the strongest level comes first."""

    NAMESPACES = "namespaces"
    """Private file system, processes and network (Linux namespaces), plus everything of the next level."""
    LANDLOCK = "landlock"
    """Landlock and seccomp on the host's file system. Needs neither user namespaces nor root."""
    RLIMITS = "rlimits"
    """Resource limits, plus seccomp if the kernel has it. No isolation: cells can reach the user's files and processes."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one session, other than time and memory."""

    processes: int
    """Processes and threads."""
    disk_mb: int
    """MiB in all files together. Enforced only at the level NAMESPACES."""
    file_mb: int
    """MiB in one file."""
    open_files: int
    """Descriptors per process."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The settings that all sessions of a sandbox share. Sent to the zygote as JSON."""

    level: Level
    root: str
    """The sandbox's directory on the host."""
    readable: tuple[str, ...]
    """Files and directories that sessions may read and execute."""
    landlock_abi: int
    """The Landlock ABI to use; 0 means no Landlock."""
    seccomp: bool
    sessions: int
    """Maximum number of sessions alive at once."""
    limits: Limits
    """Limits of each session."""
    memory_mb: int = 1024
    """Address space that a session may use beyond the zygote's, in MiB."""
    timeout_text: str = ""
    """Message of the exception that a soft interrupt raises in a cell."""
    echo: str = "python"
    """How the value of a cell's last expression is printed: ``python`` or ``ipython``."""
    groups: str = ""
    """The folder of the sandbox's control groups; empty if it has none."""
    fonts: str = ""
    """A folder, readable in sessions, with matplotlib's font list; empty if matplotlib is not installed."""
    preload: tuple[str, ...] = ()
    """Packages to import before the first session."""
    processors: tuple[int, ...] = ()
    """Numbers of the processors that the sandbox's processes start on; empty means all."""
    session_ids: bool = False
    """Whether each session gets its own user id. The zygote sets it when it runs as root."""
    keep_reading: bool = False
    """Whether sessions with their own user id keep the capability to read every file, because the interpreter lies below a
    directory that other users may not enter."""
    tasks: int = 0
    """Processes and threads that the user already had before the first session, where the kernel counts them against the same
    limit as the sessions'."""

    def to_text(self) -> str:
        """The plan as JSON, for the zygote's command line."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_text(cls, text: str) -> Plan:
        """The plan that ``to_text`` wrote."""
        values = json.loads(text)
        tuples = {name: tuple(values[name]) for name in ("readable", "processors", "preload")}
        return cls(**{**values, **tuples, "level": Level(values["level"]), "limits": Limits(**values["limits"])})
